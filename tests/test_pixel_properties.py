"""Places and sizes in XMP and EXIF are updated when a picture is turned and enlarged, or else removed and named."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
from dataclasses import replace

import numpy as np
import pytest
from pictures import Nearest, exif, photo, picture
from xmp_packets import packet

from hasn_cli.cli.main import run
from hasn_cli.enlarge import Size, enlarge
from hasn_cli.images import EncodeOptions, Metadata, open_picture, write_picture
from hasn_cli.images.exif import EXIF_IFD, Exif, pack_directory, pack_tree
from hasn_cli.images.geometry import Geometry
from hasn_cli.images.metadata import apply_orientation, resized, upright

HEIGHT, WIDTH = 48, 64
SIZE = (HEIGHT, WIDTH)


def enlarged(metadata: Metadata, factor: int = 2, orientation: int = 1) -> Metadata:
    """The metadata of a 64×48 picture after it was turned and enlarged."""
    turned = upright(metadata, SIZE, orientation)
    assert turned.size is not None
    return resized(turned, (turned.size[0] * factor, turned.size[1] * factor))


def value(xmp: bytes | None, name: str) -> str | None:
    """A simple property's value, as an attribute or an element."""
    found = re.search(rf'{name}="([^"]*)"|<{name}>([^<]*)</{name}>', (xmp or b"").decode())
    return None if found is None else found[1] if found[1] is not None else found[2]


def exif_with(*entries: tuple[int, int, int, bytes], order: str = ">") -> bytes:
    """An EXIF block with these entries in its EXIF directory."""
    below = pack_directory(order, entries, 8)
    main = [(EXIF_IFD, 4, 1, struct.pack(order + "L", 8))]
    at = 8 + len(below)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", at)
    return head + below + pack_directory(order, main, at)


def private_values(block: bytes | None, tag: int) -> tuple[float, ...] | None:
    parsed = Exif(block or b"")
    directory = parsed.number(parsed.first, EXIF_IFD)
    return parsed.numbers(directory, tag) if directory else None


PANORAMA = {
    "FullPanoWidthPixels": 200,
    "FullPanoHeightPixels": 100,
    "CroppedAreaImageWidthPixels": 64,
    "CroppedAreaImageHeightPixels": 48,
    "CroppedAreaLeftPixels": 20,
    "CroppedAreaTopPixels": 30,
}


@pytest.mark.parametrize("as_elements", [False, True])
@pytest.mark.parametrize("prefix", ["GPano", "pano"])
def test_a_panorama_grows_with_its_picture(as_elements, prefix):
    if as_elements:
        xmp = packet(elements="".join(f"<{prefix}:{n}>{v}</{prefix}:{n}>" for n, v in PANORAMA.items()),
                     pano="http://ns.google.com/photos/1.0/panorama/")  # fmt: skip
    else:
        xmp = packet(" ".join(f'{prefix}:{name}="{value}"' for name, value in PANORAMA.items()),
                     pano="http://ns.google.com/photos/1.0/panorama/")  # fmt: skip
    found = enlarged(Metadata(xmp=xmp), 4)
    assert {name: value(found.xmp, f"{prefix}:{name}") for name in PANORAMA} == {
        name: str(4 * number) for name, number in PANORAMA.items()
    }
    assert found.notices == ()


def test_a_panorama_on_its_side_is_turned_with_its_full_size():
    xmp = packet(" ".join(f'GPano:{name}="{value}"' for name, value in PANORAMA.items()))
    found = enlarged(Metadata(xmp=xmp), 1, orientation=6)  # 90° clockwise: the top becomes the right side
    expected = (100, 200, 48, 64, 100 - 30 - 48, 20)
    assert tuple(int(value(found.xmp, f"GPano:{name}") or -1) for name in PANORAMA) == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_move_with_their_pixels(orientation):
    stored = np.zeros((*SIZE, 1), np.uint8)
    stored[10:14, 20:26] = 255
    shown = apply_orientation(stored, orientation)
    rows, columns = np.nonzero(shown[..., 0])
    box = Geometry.turning(orientation, SIZE).box(20, 10, 6, 4)
    assert box == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)


AREA = """<mwg-rs:Regions rdf:parseType="Resource"><mwg-rs:AppliedToDimensions {size}/><mwg-rs:RegionList><rdf:Bag>
<rdf:li rdf:parseType="Resource"><mwg-rs:Area {area}/><mwg-rs:Type>Face</mwg-rs:Type></rdf:li></rdf:Bag>
</mwg-rs:RegionList></mwg-rs:Regions>"""
DIMENSIONS = 'stDim:w="64" stDim:h="48" stDim:unit="pixel"'


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, (0.5, 0.4, 0.1, 0.2)),
        (2, (0.5, 0.4, 0.1, 0.2)),
        (3, (0.5, 0.6, 0.1, 0.2)),
        (4, (0.5, 0.6, 0.1, 0.2)),
        (5, (0.4, 0.5, 0.2, 0.1)),
        (6, (0.6, 0.5, 0.2, 0.1)),
        (7, (0.6, 0.5, 0.2, 0.1)),
        (8, (0.4, 0.5, 0.2, 0.1)),
    ],
)
def test_face_regions_follow_the_turn_and_the_size(orientation, expected):
    area = 'stArea:x="0.5" stArea:y="0.4" stArea:w="0.1" stArea:h="0.2" stArea:unit="normalized"'
    xmp = packet(elements=AREA.format(size=DIMENSIONS, area=area))
    found = enlarged(Metadata(xmp=xmp), 2, orientation)
    assert tuple(float(value(found.xmp, f"stArea:{name}") or -1) for name in "xywh") == pytest.approx(expected)
    size = ("96", "128") if orientation >= 5 else ("128", "96")
    assert (value(found.xmp, "stDim:w"), value(found.xmp, "stDim:h")) == size


def test_regions_in_pixels_are_scaled():
    area = 'stArea:x="32" stArea:y="24" stArea:w="10" stArea:h="6" stArea:unit="pixel"'
    found = enlarged(Metadata(xmp=packet(elements=AREA.format(size=DIMENSIONS, area=area))), 3)
    assert [value(found.xmp, f"stArea:{name}") for name in "xywh"] == ["96", "72", "30", "18"]


def test_microsofts_and_iptcs_regions_follow_the_turn():
    microsoft = packet('MPReg:Rectangle="0.1, 0.2, 0.3, 0.4"')
    found = enlarged(Metadata(xmp=microsoft), 2, orientation=6)
    numbers = [float(part) for part in (value(found.xmp, "MPReg:Rectangle") or "").split(",")]
    assert numbers == pytest.approx([0.4, 0.1, 0.4, 0.3])
    fields = 'Iptc4xmpExt:RbShape="rectangle" Iptc4xmpExt:RbUnit="pixel" Iptc4xmpExt:RbX="10" Iptc4xmpExt:RbY="4"'
    boundary = f'<Iptc4xmpExt:RegionBoundary {fields} Iptc4xmpExt:RbW="20" Iptc4xmpExt:RbH="8"/>'
    found = enlarged(Metadata(xmp=packet(elements=boundary)), 2, orientation=3)
    assert [value(found.xmp, f"Iptc4xmpExt:Rb{side}") for side in "XYWH"] == ["68", "72", "40", "16"]


def test_a_pending_crop_is_turned_and_an_applied_one_is_kept_as_history():
    crop = 'crs:CropLeft="0.1" crs:CropTop="0.2" crs:CropRight="0.5" crs:CropBottom="0.9" crs:CropAngle="2.5"'
    found = enlarged(Metadata(xmp=packet(crop + ' crs:HasCrop="True"')), 2, orientation=5)
    edges = [float(value(found.xmp, f"crs:Crop{side}") or -1) for side in ("Left", "Top", "Right", "Bottom", "Angle")]
    assert edges == pytest.approx([0.2, 0.1, 0.9, 0.5, -2.5])
    applied = packet(crop + ' crs:AlreadyApplied="True"')
    assert enlarged(Metadata(xmp=applied), 2, orientation=5).xmp == applied


def test_sizes_and_resolutions_in_xmp_are_updated():
    names = 'tiff:ImageWidth="1" tiff:ImageLength="1" exif:PixelXDimension="64" exif:PixelYDimension="48"'
    resolutions = 'tiff:XResolution="300/1" tiff:YResolution="150/1" exif:FocalPlaneXResolution="4438/10"'
    xmp = packet(f'{names} {resolutions} exif:FocalPlaneYResolution="2000/1" tiff:Orientation="6"')
    found = enlarged(Metadata(xmp=xmp), 2, orientation=6).xmp
    assert [value(found, f"tiff:Image{side}") for side in ("Width", "Length")] == ["96", "128"]
    assert [value(found, f"exif:Pixel{side}Dimension") for side in "XY"] == ["96", "128"]
    assert [value(found, f"tiff:{side}Resolution") for side in "XY"] == ["150/1", "300/1"]
    assert [value(found, f"exif:FocalPlane{side}Resolution") for side in "XY"] == ["4000/1", "4438/5"]
    assert value(found, "tiff:Orientation") == "1"


@pytest.mark.parametrize(("orientation", "expected"), [(1, "64 48 20 12"), (6, "48 64 12 20"), (8, "48 64 12 20")])
def test_the_subject_area_in_xmp_is_updated(orientation, expected):
    items = "".join(f"<rdf:li>{number}</rdf:li>" for number in (32, 24, 10, 6))
    xmp = packet(elements=f"<exif:SubjectArea><rdf:Seq>{items}</rdf:Seq></exif:SubjectArea>")
    found = enlarged(Metadata(xmp=xmp), 2, orientation).xmp or b""
    assert " ".join(re.findall(r"<rdf:li>(\d+)</rdf:li>", found.decode())) == expected


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("orientation", "numbers", "expected"),
    [
        (1, (32, 24, 10, 6), (64, 48, 20, 12)),
        (6, (10, 4, 8, 6), (88, 20, 12, 16)),
        (3, (10, 4), (108, 88)),
        (8, (10, 4, 9), (8, 108, 18)),
    ],
)
def test_the_subject_area_in_exif_is_updated(order, orientation, numbers, expected):
    area = (0x9214, 3, len(numbers), struct.pack(f"{order}{len(numbers)}H", *numbers))
    place = (0xA214, 3, 2, struct.pack(order + "2H", *numbers[:2]))
    found = enlarged(Metadata(exif=exif_with(area, place, order=order)), 2, orientation)
    assert private_values(found.exif, 0x9214) == expected
    assert private_values(found.exif, 0xA214) == expected[:2]


def test_the_sensors_resolution_is_updated():
    both = [(tag, 5, 1, struct.pack(">LL", number, 3)) for tag, number in ((0xA20E, 3000), (0xA20F, 1500))]
    found = enlarged(Metadata(exif=exif_with(*both)), 4, orientation=6)
    assert [private_values(found.exif, tag) for tag in (0xA20E, 0xA20F)] == [(2000,), (4000,)]


def test_properties_that_cannot_be_updated_are_left_out_and_named():
    far = (0x9214, 3, 2, struct.pack(">2H", 60_000, 10))
    xmp = packet('GPano:FullPanoWidthPixels="wide" drone-dji:DewarpData="2020;1,2,3" dc:format="image/jpeg"')
    found = enlarged(Metadata(exif=exif_with(far), xmp=xmp), 2)
    assert private_values(found.exif, 0x9214) is None
    for name in ("GPano:FullPanoWidthPixels", "drone-dji:DewarpData"):
        assert value(found.xmp, name) is None
    assert value(found.xmp, "dc:format") == "image/jpeg"
    told = " ".join(found.notices)
    assert all(name in told for name in ("SubjectArea", "GPano:FullPanoWidthPixels", "drone-dji:DewarpData"))


def test_an_xmp_extension_is_updated_and_left_out_of_formats_without_it():
    inner = packet('GPano:LargestValidInteriorRectLeft="8" GPano:LargestValidInteriorRectTop="4"')
    name = hashlib.md5(inner).hexdigest().upper()
    pieces = [inner[:100], inner[100:]]
    head = b"http://ns.adobe.com/xmp/extension/\0" + name.encode()
    bodies = tuple(
        head + struct.pack(">II", len(inner), at) + piece for at, piece in zip((0, 100), pieces, strict=True)
    )
    metadata = Metadata(xmp=packet(f'xmpNote:HasExtendedXMP="{name}"'), extended_xmp=bodies)
    sr = enlarge(picture(photo(), metadata=upright(metadata, SIZE, 1)), Nearest, Size(2))
    buffer = io.BytesIO()
    write_picture(sr, buffer, "jpeg", EncodeOptions())
    found = open_picture(buffer.getvalue()).metadata
    joined = b"".join(body[len(head) + 8 :] for body in found.extended_xmp)
    assert value(joined, "GPano:LargestValidInteriorRectLeft") == "16"
    assert value(found.xmp, "xmpNote:HasExtendedXMP") == hashlib.md5(joined).hexdigest().upper()
    buffer = io.BytesIO()
    write_picture(sr, buffer, "png", EncodeOptions())
    assert value(open_picture(buffer.getvalue()).metadata.xmp, "xmpNote:HasExtendedXMP") is None


@pytest.mark.parametrize("xmp", [b"<x:xmpmeta", b"rubbish", b"<a><b></a>", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'])
def test_xmp_that_is_not_xml_is_left_out_and_reported(xmp):
    found = upright(Metadata(xmp=xmp), SIZE, 1)
    assert found.xmp is None and "XMP" in found.notices[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_xmp_in_any_encoding_keeps_everything_else_byte_for_byte(encoding):
    before = packet('tiff:Orientation="6" dc:format="日本 &amp; é"', "<dc:title> <!-- a --> x</dc:title>")
    found = upright(Metadata(xmp=before.decode().encode(encoding)), SIZE, 6)
    assert found.xmp == before.replace(b'Orientation="6"', b'Orientation="1"')


def test_every_format_gets_updated_values(tmp_path):
    xmp = packet(" ".join(f'GPano:{name}="{value}"' for name, value in PANORAMA.items()))
    shown = picture(photo(), metadata=upright(Metadata(xmp=xmp, exif=exif(1)), SIZE))
    sr = enlarge(shown, Nearest, Size(2))
    for format in ("jpeg", "png", "webp", "tiff", "avif", "jpeg2000", "jpegxl", "heic"):
        buffer = io.BytesIO()
        write_picture(sr, buffer, format, EncodeOptions())
        found = open_picture(buffer.getvalue()).metadata
        assert value(found.xmp, "GPano:FullPanoWidthPixels") == "400", format
        assert private_values(found.exif, 0xA002) == (128,), format


def jpeg_with(xmp: bytes, behind: bytes = b"", segment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    write_picture(picture(photo(), metadata=Metadata(xmp=xmp)), buffer, "jpeg", EncodeOptions())
    data = buffer.getvalue()
    if segment:
        data = data[:2] + b"\xff\xe2" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    return data + behind


DIRECTORY = """<Container:Directory><rdf:Seq>
<rdf:li rdf:parseType="Resource"><Container:Item Item:Mime="image/jpeg" Item:Semantic="Primary"/></rdf:li>
<rdf:li rdf:parseType="Resource">
<Container:Item Item:Mime="video/mp4" Item:Semantic="MotionPhoto" Item:Length="9"/></rdf:li>
</rdf:Seq></Container:Directory>"""
MOTION = 'GCamera:MotionPhoto="1" GCamera:MicroVideo="1" GCamera:MicroVideoOffset="9" GCamera:HdrPlusMakernote="kept"'
VIDEO = b"\0\0\0\x10ftypmp42\0\0\0\0" + bytes(400)


def test_only_the_pointers_to_a_lost_video_are_removed():
    found = open_picture(jpeg_with(packet(MOTION, DIRECTORY), VIDEO)).metadata
    text = (found.xmp or b"").decode()
    assert not re.search("MotionPhoto=|MicroVideo|Container:Item|Item:Length", text)
    assert 'GCamera:HdrPlusMakernote="kept"' in text
    assert found.notices == ("its video is left out",)


@pytest.mark.parametrize("apple", [False, True])
def test_pointers_to_a_lost_gain_map_are_removed(apple):
    name = "HDRGainMap:HDRGainMapVersion" if apple else "hdrgm:Version"
    small = jpeg_with(packet(f'{name}="1.0"'))
    found = open_picture(jpeg_with(packet(f'{name}="1.0" dc:format="image/jpeg"'), small)).metadata
    assert value(found.xmp, name) is None and value(found.xmp, "dc:format") == "image/jpeg"
    assert found.notices == ("its gain map is left out",)


def test_lost_parts_that_xmp_does_not_announce_are_reported_too():
    plain = jpeg_with(packet())
    assert open_picture(plain).metadata.notices == ()
    assert open_picture(plain + bytes(100)).metadata.notices == ()  # only padding
    assert open_picture(plain + plain).metadata.notices == ("its further pictures are left out",)
    assert open_picture(plain + VIDEO).metadata.notices == ("its video is left out",)
    assert "behind the picture" in open_picture(plain + b"SEFH" + bytes(20) + b"x" * 30 + b"SEFT").metadata.notices[0]
    iso = b"urn:iso:std:iso:ts:21496:-1\0" + bytes(4)
    assert open_picture(jpeg_with(packet(), segment=iso)).metadata.notices == ("its gain map is left out",)


def test_the_video_of_a_motion_photo_in_heic_is_named():
    buffer = io.BytesIO()
    write_picture(picture(photo()), buffer, "heic", EncodeOptions())
    video = struct.pack(">I4s", 8 + len(VIDEO), b"mpvd") + VIDEO
    assert open_picture(buffer.getvalue()).metadata.notices == ()
    assert open_picture(buffer.getvalue() + video).metadata.notices == ("its video is left out",)


def test_notices_are_shown_in_one_line_and_in_json(tmp_path, capfd):
    path = tmp_path / "live.jpg"
    path.write_bytes(jpeg_with(packet(MOTION, DIRECTORY), VIDEO))
    assert run(["upscale", str(path), "-s", "2", "-o", str(tmp_path / "a.jpg"), "--json"]) == 0
    out, err = capfd.readouterr()
    assert err.count("\n") == 1 and "its video is left out" in err
    done = next(event for event in map(json.loads, out.splitlines()) if event["event"] == "done")
    assert done["notices"] == ["its video is left out"]
    assert run(["upscale", str(path), "-s", "2", "-o", str(tmp_path / "b.jpg"), "-q"]) == 0
    assert capfd.readouterr() == ("", "")


def test_metadata_without_pixel_values_survives_a_turn():
    before = packet('dc:format="image/jpeg"')
    block = exif(6)
    found = upright(Metadata(xmp=before, exif=block), SIZE, 6)
    assert found.xmp == before and found.notices == ()
    assert replace(found, size=None).size is None
    assert pack_tree(Exif(found.exif or b""), Exif(found.exif or b"").first, 8)[1]
