"""Reads and writes TIFF pages of 1 to 16 bits or floats, using tifffile, which keeps every depth as it is.

A TIFF stores EXIF in directories of the file itself. When a file is read, they are copied into an EXIF block. When one
is written, they are appended to the finished file, together with a new first directory that points to them.
"""

from __future__ import annotations

import contextlib
import logging
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO, cast

import numpy as np
import tifffile

from hasn_cli.images.codecs.jpeg import segments
from hasn_cli.images.codecs.tiff_limits import check_directories, check_pieces
from hasn_cli.images.codecs.tiff_structure import (
    decode_fax,
    piece_count,
    remove_tags,
    repair_lengths,
    without_broken_end,
)
from hasn_cli.images.color import cmyk_to_srgb, lab_to_srgb, srgb_profile, to_dtype, unpremultiply, widen
from hasn_cli.images.compression import Compression, jpeg_compression
from hasn_cli.images.exif import BigDirectories, Directories, Exif, RawEntry, pack_directory, pack_tree
from hasn_cli.images.limits import Limit
from hasn_cli.images.metadata import apply_orientation, upright
from hasn_cli.images.picture import EncodeOptions, Frame, Metadata, Picture, Pixels, ReplayableFrames, Shape
from hasn_cli.images.source import Source
from hasn_cli.images.spaces import ycc_to_rgb

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # problems are raised as errors instead

_PHOTOMETRIC = tifffile.PHOTOMETRIC
_MIN_IS_WHITE = _PHOTOMETRIC.MINISWHITE
_GRAY = (_PHOTOMETRIC.MINISWHITE, _PHOTOMETRIC.MINISBLACK)
_CONVERTED = (_PHOTOMETRIC.SEPARATED, _PHOTOMETRIC.CIELAB, _PHOTOMETRIC.ICCLAB)
_SHOWN = (*_GRAY, _PHOTOMETRIC.RGB, _PHOTOMETRIC.PALETTE, *_CONVERTED)
_XMP, _IPTC, _ICC, _PHOTOSHOP = 700, 33723, 34675, 34377
_YCBCR_COEFFICIENTS, _REFERENCE_BLACK_WHITE = 529, 532
_DESCRIPTION, _ORIENTATION = 270, 274
_RESOLUTION_TAGS = (282, 283, 296)
_BYTES = 7
# description, maker, model, orientation, software, time, artist, host, copyright, Windows' XP…, EXIF, GPS
_EXIF_TAGS = {270, 271, 272, 274, 305, 306, 315, 316, 33432, *range(40091, 40096), 34665, 34853}
_STRUCTURE_TAGS = {
    254,
    255,
    *range(256, 267),
    273,
    *range(277, 286),
    284,
    296,
    317,
    *range(320, 326),
    330,
    *range(338, 348),
}
_DNG_VERSION = 50706
_FAX = (2, 3, 4)  # CCITT's compressions
_RAW = (_PHOTOMETRIC.CFA, _PHOTOMETRIC.LINEAR_RAW)
_JPEG_HEADER = 1 << 16  # bytes, far more than come before the pixels of a strip
_LOSSY = {
    tifffile.COMPRESSION.OJPEG: "JPEG",
    tifffile.COMPRESSION.JPEG_LOSSY: "JPEG",
    tifffile.COMPRESSION.APERIO_JP2000_YCBC: "JPEG 2000",
    tifffile.COMPRESSION.APERIO_JP2000_RGB: "JPEG 2000",
    tifffile.COMPRESSION.JPEG_2000_LOSSY: "JPEG 2000",
    tifffile.COMPRESSION.JPEGXR_NDPI: "JPEG XR",
    tifffile.COMPRESSION.JPEGXR: "JPEG XR",
    tifffile.COMPRESSION.WEBP: "WebP",
}  # the usual ones; a file does not say whether its WebP or JPEG XL is exact
_4_GIB = 2**32


def read(source: Source, limit: Limit) -> Picture:
    """Read a TIFF's pages, each with its own orientation. Reduced versions of a page and masks are skipped."""
    with source.view() as data:
        check_directories(data)
    source, broken = without_broken_end(source)
    with source.open() as stream, tifffile.TiffFile(stream) as file:
        indices = _pages(file)
        page: Any = file.pages[indices[0]]
        _check(source, limit, page)
        first, shapes = _shape(page), _shapes(source, limit, [file.pages[index] for index in indices])
        orientation = _orientation(page)
        metadata = _metadata(page)
        compression = _compression(page)
        # the descriptions of OME and tifffile state the sizes of everything in the file, which will change
        kept = _EXIF_TAGS - {_DESCRIPTION} if file.is_ome or file.is_shaped else _EXIF_TAGS
    metadata = replace(metadata, exif=_lift_exif(source, kept))

    def frames() -> Iterator[Frame]:
        with source.open() as again, tifffile.TiffFile(again) as opened:
            for index in indices:
                shown: Any = opened.pages[index]
                _check(source, limit, shown)
                turned = _orientation(shown)
                about = upright(_metadata(shown), (shown.imagelength, shown.imagewidth), turned)
                pixels = apply_orientation(_pixels(shown), turned)
                yield Frame(pixels, icc=about.icc, dpi=about.dpi, min_is_white=shown.photometric == _MIN_IS_WHITE)
            if broken:
                raise ValueError(f"page {len(indices) + 1} is missing: {broken}")

    return Picture(
        name=source.name,
        format="tiff",
        size=first.size,
        channels=first.channels,
        dtype=first.dtype,
        frames=ReplayableFrames(frames),
        frame_count=len(indices),
        paged=True,
        broken=broken and f"page {len(indices) + 1} is missing: {broken}",
        page_shapes=shapes if any(shape != first for shape in shapes) else (),
        metadata=upright(metadata, (page.imagelength, page.imagewidth), orientation),
        compression=compression,
    )


def _pages(file: tifffile.TiffFile) -> list[int]:
    """The indices of the pictures in a file that are pages.

    Raises:
        ValueError: there are none, the file is a camera's raw file, or several images share a directory.
    """
    first: Any = file.pages[0]
    inside = [first, *(first.pages or ())]
    if _DNG_VERSION in first.tags or any(page.photometric in _RAW for page in inside):
        raise ValueError("it is a camera's raw file, which must be developed first")
    if file.is_imagej and (file.imagej_metadata or {}).get("images", 1) > len(file.pages):
        raise ValueError("ImageJ stored several images in one directory; save each of them to its own file")
    shown = [index for index in range(len(file.pages)) if not int(cast(Any, file.pages[index]).subfiletype) & 0b101]
    if not shown:
        raise ValueError("it contains only previews or masks, and no picture of full size")
    return shown


def _check(source: Source, limit: Limit, page: Any) -> None:
    """Refuse a page that is too large, truncated or not supported, before it is decoded."""
    limit.check(source.name, page.imagelength, page.imagewidth)
    if page.is_tiled:
        limit.check(source.name, page.tilelength, page.tilewidth)
    if page.imagedepth != 1 or page.samplesperpixel > 8:
        raise ValueError(f"{page.samplesperpixel} samples per pixel and {page.imagedepth} layers are not supported")
    plain = page.compression == tifffile.COMPRESSION.JPEG or (page.bitspersample == 8 and page.subsampling == (1, 1))
    if page.photometric not in _SHOWN and not (plain and page.photometric == _PHOTOMETRIC.YCBCR):
        raise ValueError(f"the colour space {getattr(page.photometric, 'name', page.photometric)} is not supported")
    if len(page.dataoffsets) < piece_count(page):
        raise ValueError(f"some of its {'tiles' if page.is_tiled else 'strips'} are missing")
    length = page.parent.filehandle.size
    repair_lengths(page, length)
    pieces = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if not pieces or any(not 0 < start < start + count <= length for start, count in pieces):
        raise ValueError("the file is truncated")
    if page.dtype is None or page.dtype.kind not in "buf" or (page.dtype.kind == "u" and page.dtype.itemsize > 2):
        raise ValueError(f"its type of samples, of {page.bitspersample} bits, is not supported")


def _compression(page: Any) -> Compression | None:
    """The lossy compression of a page that `_check` has accepted."""
    if page.compression == tifffile.COMPRESSION.JPEG:
        tables = page.jpegtables or b""  # a JPEG without a frame, which holds the tables of all strips or tiles
        start, count = page.dataoffsets[0], page.databytecounts[0]
        page.parent.filehandle.seek(start)
        strip = page.parent.filehandle.read(min(count, _JPEG_HEADER))
        return jpeg_compression([*_segments(tables), *_segments(strip)])
    name = _LOSSY.get(page.compression)
    return None if name is None else Compression(name)


def _segments(data: bytes) -> list[tuple[int, bytes]]:
    """The segments of a JPEG, or of the start of one, as far as they can be read."""
    found: list[tuple[int, bytes]] = []
    with contextlib.suppress(ValueError):
        found.extend(segments(data))
    return found


def _orientation(page: Any) -> int:
    """The page's orientation, 1 to 8; 1 if it states none or an invalid one."""
    stated = page.tags.valueof(_ORIENTATION)
    return int(stated) if stated in range(1, 9) else 1


def _colors(page: Any) -> int:
    """The number of colour samples per pixel."""
    if page.photometric in _GRAY or page.photometric == _PHOTOMETRIC.PALETTE:
        return 1
    return 4 if page.photometric == _PHOTOMETRIC.SEPARATED else 3


def _alpha(page: Any) -> int | None:
    """The index of the alpha sample, or None if no sample is declared as alpha."""
    for index, kind in enumerate(page.extrasamples):
        if kind in (1, 2):
            return _colors(page) + index
    return None


def _shapes(source: Source, limit: Limit, pages: list[Any]) -> tuple[Shape, ...]:
    found = []
    for page in pages:
        with contextlib.suppress(Exception):  # an invalid page raises an error when its frame is read
            _check(source, limit, page)
            found.append(_shape(page))
    return tuple(found)


def _shape(page: Any) -> Shape:
    """The shape of the page after decoding."""
    colors = 1 if page.photometric in _GRAY else 3
    palette = page.photometric == _PHOTOMETRIC.PALETTE
    deep = not _is_8_bit(page.colormap) if palette else page.bitspersample > 8
    dtype = np.float32 if page.dtype.kind == "f" else np.uint16 if deep else np.uint8
    size = (page.imagelength, page.imagewidth)
    turned = size if _orientation(page) < 5 else size[::-1]
    return Shape(turned, colors + (_alpha(page) is not None), np.dtype(dtype))


def _is_8_bit(colormap: Pixels) -> bool:
    return bool((colormap % 257 == 0).all() or (colormap % 256 == 0).all() or colormap.max() < 256)


def _pixels(page: Any) -> Pixels:
    check_pieces(page)
    fax = page.compression in _FAX and not page.is_tiled and page.bitspersample == page.samplesperpixel == 1
    data = decode_fax(page) if fax else page.asarray()
    if page.axes == "SYX":
        data = np.moveaxis(data, 0, 2)
    data = data.reshape(page.imagelength, page.imagewidth, -1)
    colors, alpha = _colors(page), _alpha(page)
    if data.shape[2] < colors:
        raise ValueError(f"{data.shape[2]} samples per pixel are too few")
    color = _color(page, data[..., :colors])
    if alpha is None:
        return color
    opacity = _stretch(page, data[..., alpha : alpha + 1])
    pixels = np.concatenate([color, to_dtype(opacity, color.dtype)], axis=2)
    return unpremultiply(pixels) if page.extrasamples[alpha - colors] == 1 else pixels


def _color(page: Any, data: Pixels) -> Pixels:
    """Convert stored samples to gray or RGB."""
    kind = page.photometric
    if kind == _PHOTOMETRIC.PALETTE:
        colormap = page.colormap
        if int(data.max()) >= colormap.shape[1]:
            raise ValueError("its palette is too short")
        if _is_8_bit(colormap):
            colormap = (colormap if colormap.max() < 256 else colormap >> 8).astype(np.uint8)
        # tifffile returns 1-bit samples as booleans, which would be used as a mask instead of indices
        return np.ascontiguousarray(colormap.T[data[..., 0].astype(np.intp)])
    if kind == _PHOTOMETRIC.YCBCR and page.compression != tifffile.COMPRESSION.JPEG:
        return _from_ycbcr(page, data)
    if kind in (_PHOTOMETRIC.CIELAB, _PHOTOMETRIC.ICCLAB):
        return lab_to_srgb(data, signed=kind == _PHOTOMETRIC.CIELAB)
    samples = _stretch(page, data)
    if kind == _PHOTOMETRIC.SEPARATED:
        return cmyk_to_srgb(samples, page.tags.valueof(_ICC))
    if kind == _MIN_IS_WHITE and samples.dtype.kind != "f":  # floats keep their values
        return np.iinfo(samples.dtype).max - samples
    return samples


def _from_ycbcr(page: Any, data: Pixels) -> Pixels:
    """Convert 8-bit Y, Cb and Cr to RGB, with the file's own coefficients and range (TIFF 6.0, sections 20 and 21)."""
    red, green, blue = _ratios(page, _YCBCR_COEFFICIENTS, 3) or (0.299, 0.587, 0.114)
    return ycc_to_rgb(data, (red, green, blue), _ratios(page, _REFERENCE_BLACK_WHITE, 6))


def _ratios(page: Any, tag: int, count: int) -> tuple[float, ...] | None:
    """The values of a tag with `count` RATIONALs; None if it is missing or of another type."""
    stated = page.tags.valueof(tag)
    if not isinstance(stated, tuple) or len(stated) != 2 * count or not all(stated[1::2]):
        return None
    return tuple(over / under for over, under in zip(stated[::2], stated[1::2], strict=True))


def _chromaticities(page: Any) -> dict[str, Any]:
    """The white point and primaries of colours without a profile, as fields of `Metadata`; empty if none are stated."""
    white, primaries = _ratios(page, 318, 2), _ratios(page, 319, 6)
    if page.photometric not in (_PHOTOMETRIC.RGB, _PHOTOMETRIC.PALETTE, _PHOTOMETRIC.YCBCR) or not (
        white and primaries
    ):
        return {}
    return {"gamma": 1 / 2.2, "chromaticities": white + primaries}


def _stretch(page: Any, data: Pixels) -> Pixels:
    """Convert samples of any depth to the whole range of uint8 or uint16, or to float32."""
    if data.dtype.kind != "f":
        return widen(data, page.bitspersample)
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, and are refused later
        return data.astype(np.float32)


def _metadata(page: Any) -> Metadata:
    def raw(tag: int) -> bytes | None:
        value = page.tags.valueof(tag)
        if isinstance(value, tuple):  # IPTC is often declared as LONG
            entry = page.tags[tag]
            value = struct.pack(f"{page.parent.byteorder}{len(value)}{'L' if entry.dtype == 4 else 'B'}", *value)
        return value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else None

    resolution = page.get_resolution(tifffile.RESUNIT.INCH) if 282 in page.tags and 283 in page.tags else (1, 1)
    units = page.tags.valueof(296)
    icc = srgb_profile() if page.photometric in _CONVERTED else raw(_ICC)
    return Metadata(
        icc=icc,
        **({} if icc else _chromaticities(page)),
        xmp=raw(_XMP),
        iptc=raw(_IPTC),
        dpi=resolution if units in (None, 2, 3) and 282 in page.tags and min(resolution) > 0 else None,
    )


def _lift_exif(source: Source, kept: set[int]) -> bytes | None:
    """Build an EXIF block from these tags of a TIFF's first directory; None if there are none or they are broken."""
    with source.view() as data:
        try:
            file = (BigDirectories if bytes(data[2:4]) in (b"+\0", b"\0+") else Directories)(data)
            below, entries = pack_tree(file, file.first, 8, kept.__contains__)
        except ValueError:
            return None
        if not entries:
            return None
        head = (b"II*\0" if file.order == "<" else b"MM\0*") + struct.pack(file.order + "L", 8 + len(below))
        return head + below + pack_directory(file.order, entries, 8 + len(below))


def write(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write a TIFF page by page, compressed without loss. Above 4 GB, it is a BigTIFF."""
    metadata = picture.metadata
    exif = _parsed(metadata.exif)
    big = picture.nbytes > 0.95 * _4_GIB
    without_resolution = []
    with tifffile.TiffWriter(stream, bigtiff=big, byteorder=">" if exif and exif.order == ">" else "<") as writer:
        for index, frame in enumerate(picture.frames):
            channels = frame.pixels.shape[2]
            icc, dpi = (frame.icc, frame.dpi) if index else (metadata.icc, metadata.dpi)
            if options.strip or (dpi and not all(0 < value < 2**32 for value in dpi)):
                dpi = None
            if dpi is None:
                without_resolution.append(index)
            pixels = _as_stored(frame)
            gray = "miniswhite" if frame.min_is_white else "minisblack"
            writer.write(
                np.ascontiguousarray(pixels if channels > 1 else pixels[..., 0]),
                photometric=gray if channels <= 2 else "rgb",
                planarconfig="contig" if channels > 1 else None,
                extrasamples=["unassalpha"] if channels in (2, 4) else None,
                compression="zlib",
                predictor=True,
                resolution=dpi,
                resolutionunit="inch" if dpi else "none",
                iccprofile=icc,
                metadata=None,
                software=False,
                contiguous=False,
            )
    # tifffile always writes a resolution, which viewers would read as one dot per inch
    remove_tags(stream, without_resolution, frozenset(_RESOLUTION_TAGS))
    _append_metadata(stream, metadata, exif, big=big)


def _as_stored(frame: Frame) -> Pixels:
    """Invert the integers of a page in which zero is white; see `Frame.min_is_white`."""
    pixels = frame.pixels
    if not frame.min_is_white or pixels.dtype.kind == "f" or pixels.shape[2] > 2:
        return pixels
    return np.concatenate([np.iinfo(pixels.dtype).max - pixels[..., :1], pixels[..., 1:]], axis=2)


def _parsed(exif: bytes | None) -> Exif | None:
    """Parse an EXIF block. None if it is too broken to be copied entry by entry."""
    try:
        block = Exif(exif or b"")
        pack_tree(block, block.first, 0)
    except ValueError:
        return None
    return block


def _append_metadata(stream: BinaryIO, metadata: Metadata, exif: Exif | None, *, big: bool = False) -> None:
    """Append a first directory with the metadata to the file, and make the header point to it.

    Args:
        stream: the finished file.
        metadata: of which XMP and IPTC are used.
        exif: the EXIF block.
        big: whether the file is a BigTIFF.
    """
    added: list[RawEntry] = []
    for tag, value in ((_XMP, metadata.xmp), (_IPTC, metadata.iptc)):
        if value:
            added.append((tag, _BYTES, len(value), value))
    if not added and exif is None:
        return
    end = stream.seek(0, 2)
    stream.write(b"\0" * (end % 2))
    end += end % 2
    below = b""
    if exif is not None:
        below, entries = pack_tree(
            exif, exif.first, end, lambda tag: tag not in _STRUCTURE_TAGS | set(_RESOLUTION_TAGS), big=big
        )
        added = entries + added
        stream.write(below)
    order, existing, following = _first_directory(stream, big)
    known = {entry[0] for entry in existing}
    entries = existing + [entry for entry in added if entry[0] not in known]
    stream.seek(0, 2)
    stream.write(pack_directory(order, entries, end + len(below), following, big=big))
    stream.seek(8 if big else 4)
    stream.write(struct.pack(order + ("Q" if big else "L"), end + len(below)))


def _first_directory(stream: BinaryIO, big: bool) -> tuple[str, list[RawEntry], int]:
    """Byte order, entries as stored (long values as offsets), and the offset of the next directory."""
    stream.seek(0)
    order = "<" if stream.read(2) == b"II" else ">"
    offset, number = struct.Struct(order + ("Q" if big else "L")), struct.Struct(order + ("Q" if big else "H"))
    entry = struct.Struct(order + ("HHQ8s" if big else "HHL4s"))
    stream.seek(8 if big else 4)
    stream.seek(offset.unpack(stream.read(offset.size))[0])
    (count,) = number.unpack(stream.read(number.size))
    entries = [entry.unpack(stream.read(entry.size)) for _ in range(count)]
    return order, entries, offset.unpack(stream.read(offset.size))[0]
