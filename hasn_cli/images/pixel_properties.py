"""Updates the XMP and EXIF properties that contain places and sizes when a picture is turned or enlarged.

The tables `_RULES` and `_EXIF_RULES` say which values belong together and how to transform them. Properties that cannot
be updated are removed, and their names are returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from hasn_cli.images.exif import (
    EXIF_IFD,
    IMAGE_LENGTH,
    IMAGE_WIDTH,
    INTEROP_IFD,
    PIXEL_X_DIMENSION,
    PIXEL_Y_DIMENSION,
    Exif,
)
from hasn_cli.images.geometry import Geometry, Numbers
from hasn_cli.images.xmp import Name, Node, Packet

_TIFF = "http://ns.adobe.com/tiff/1.0/"
_EXIF = "http://ns.adobe.com/exif/1.0/"
_GPANO = "http://ns.google.com/photos/1.0/panorama/"
_MWG = "http://www.metadataworkinggroup.com/schemas/regions/"
_AREA = "http://ns.adobe.com/xmp/sType/Area#"
_DIMENSIONS = "http://ns.adobe.com/xap/1.0/sType/Dimensions#"
_ACDSEE = "http://ns.acdsee.com/regions/"
_ACDSEE_AREA = "http://ns.acdsee.com/sType/Area#"
_ACDSEE_DIMENSIONS = "http://ns.acdsee.com/sType/Dimensions#"
_MICROSOFT = "http://ns.microsoft.com/photo/1.2/t/Region#"
_IPTC_EXT = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_CAMERA_RAW = "http://ns.adobe.com/camera-raw-settings/1.0/"
_PAGED_TEXT = "http://ns.adobe.com/xap/1.0/t/pg/"
_DYNAMIC_MEDIA = "http://ns.adobe.com/xmp/1.0/DynamicMedia/"
_DJI = "http://www.dji.com/drone-dji/1.0/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_DEPTH = "http://ns.google.com/photos/1.0/depthmap/"

Transform = Callable[[Geometry, Numbers], Numbers]
Applies = Callable[[Packet, Node], bool]


@dataclass(frozen=True)
class _Rule:
    """Properties whose values are transformed together.

    Attributes:
        fields: their names.
        transform: computes the new values from the old ones. A missing property has the value 0; its result is unused.
        within: names of the structures that contain these fields; empty if they are properties of the packet itself.
        whole: the values are whole numbers.
        applies: tells whether the rule applies to a structure (or to the packet, given its root).
    """

    fields: tuple[Name, ...]
    transform: Transform
    within: tuple[Name, ...] = ()
    whole: bool = False
    applies: Applies = lambda packet, node: True


def _names(namespace: str, *names: str) -> tuple[Name, ...]:
    return tuple((namespace, name) for name in names)


def _unit(namespace: str, *units: str) -> Applies:
    """Make a test whether a structure's field `unit` is one of `units`; "" means that the field may be missing."""

    def applies(packet: Packet, node: Node) -> bool:
        unit = packet.field(node, (namespace, "unit"))
        return (packet.text(unit).lower() if unit else "") in units

    return applies


def _crop_is_pending(packet: Packet, node: Node) -> bool:
    """Whether Camera Raw's crop has not been applied to the pixels yet; otherwise it refers to an older picture."""
    return not any(packet.text(found) == "True" for found in packet.find((_CAMERA_RAW, "AlreadyApplied")))


def _crop_in_pixels(packet: Packet, node: Node) -> bool:
    units = _names(_CAMERA_RAW, "CropUnit", "CropUnits")
    return _crop_is_pending(packet, node) and any(packet.text(found) == "0" for found in packet.find(*units))


def _picture_size(geometry: Geometry, _: Numbers) -> Numbers:
    return geometry.after[1], geometry.after[0]


def _swapped(geometry: Geometry, values: Numbers) -> Numbers:
    return values[::-1] if geometry.swaps_axes else values


def _lengths(geometry: Geometry, values: Numbers) -> Numbers:
    """Transform alternating widths and heights."""
    pairs = zip(values[::2], values[1::2], strict=True)
    return tuple(length for pair in pairs for length in geometry.lengths(*pair))


def _length(geometry: Geometry, values: Numbers) -> Numbers:
    return geometry.lengths(values[0], values[0])[:1]


def _panorama(geometry: Geometry, values: Numbers) -> Numbers:
    """Transform the picture's place in the full panorama. The last two values are the panorama's width and height."""
    left, top, width, height, full_width, full_height = values
    box = geometry.box(left, top, width, height, (full_height, full_width))
    return *box, *geometry.lengths(full_width, full_height)


def _edges(geometry: Geometry, values: Numbers) -> Numbers:
    """Transform left, top, right and bottom, given as fractions."""
    left, top, right, bottom = values
    x, y, width, height = geometry.relative_box(left, top, right - left, bottom - top)
    return x, y, x + width, y + height


def _angle(geometry: Geometry, values: Numbers) -> Numbers:
    return (-values[0] if geometry.mirrored else values[0],)


def _subject(geometry: Geometry, values: Numbers) -> Numbers:
    """Transform EXIF's SubjectArea: a point; a circle's centre and diameter; or a box's centre, width and height."""
    x, y, *size = values
    extent: Iterable[float] = ()
    if len(size) == 1:
        extent = [size[0] * math.prod(geometry.scales) ** 0.5]
    elif size:
        extent = geometry.lengths(size[0], size[1])
    return *geometry.point(x, y), *extent


_PANORAMA = _names(
    _GPANO,
    "CroppedAreaLeftPixels",
    "CroppedAreaTopPixels",
    "CroppedAreaImageWidthPixels",
    "CroppedAreaImageHeightPixels",
    "FullPanoWidthPixels",
    "FullPanoHeightPixels",
)
_INTERIOR = _names(_GPANO, *(f"LargestValidInteriorRect{side}" for side in ("Left", "Top", "Width", "Height")))
_ACDSEE_AREAS = _names(_ACDSEE, "DLYArea", "ALGArea")


def _region_rules(area: str, areas: tuple[Name, ...], dimensions: str, picture: Name) -> tuple[_Rule, ...]:
    """Rules for the Metadata Working Group's regions: their centres and sizes, and the size of the whole picture."""
    box = _names(area, "x", "y", "w", "h")
    size = _names(dimensions, "w", "h")
    diameter = _names(area, "d")
    return (
        _Rule(size, _lengths, (picture,), whole=True, applies=_unit(dimensions, "pixel", "pixels", "")),
        _Rule(
            box,
            lambda g, v: g.relative_centred_box(v[0], v[1], v[2], v[3]),
            areas,
            applies=_unit(area, "normalized", ""),
        ),
        _Rule(box, lambda g, v: g.centred_box(v[0], v[1], v[2], v[3]), areas, applies=_unit(area, "pixel", "pixels")),
        _Rule(diameter, _length, areas, applies=_unit(area, "pixel", "pixels")),
    )


_RULES: tuple[_Rule, ...] = (
    _Rule(_names(_TIFF, "ImageWidth", "ImageLength"), _picture_size, whole=True),
    _Rule(_names(_EXIF, "PixelXDimension", "PixelYDimension"), _picture_size, whole=True),
    _Rule(_names(_TIFF, "XResolution", "YResolution"), _swapped),
    _Rule(_names(_EXIF, "FocalPlaneXResolution", "FocalPlaneYResolution"), _lengths),
    _Rule(_PANORAMA, _panorama, whole=True),
    _Rule(_INTERIOR, lambda g, v: g.box(v[0], v[1], v[2], v[3]), whole=True),
    *_region_rules(_AREA, ((_MWG, "Area"),), _DIMENSIONS, (_MWG, "AppliedToDimensions")),
    *_region_rules(_ACDSEE_AREA, _ACDSEE_AREAS, _ACDSEE_DIMENSIONS, (_ACDSEE, "AppliedToDimensions")),
    _Rule(
        _names(_DIMENSIONS, "w", "h"),
        _lengths,
        ((_PAGED_TEXT, "MaxPageSize"), (_DYNAMIC_MEDIA, "videoFrameSize")),
        applies=_unit(_DIMENSIONS, "pixel", "pixels"),
    ),
    _Rule(_names(_CAMERA_RAW, "CropLeft", "CropTop", "CropRight", "CropBottom"), _edges, applies=_crop_is_pending),
    _Rule(_names(_CAMERA_RAW, "CropWidth", "CropHeight"), _lengths, applies=_crop_in_pixels),
    _Rule(_names(_CAMERA_RAW, "CropAngle"), _angle, applies=_crop_is_pending),
    _Rule(_names(_DJI, "CalibratedOpticalCenterX", "CalibratedOpticalCenterY"), lambda g, v: g.point(v[0], v[1])),
    _Rule(_names(_DJI, "CalibratedFocalLength"), _length),
)

# lists of numbers, with the lengths that are valid
_LISTS: dict[Name, tuple[Transform, tuple[int, ...]]] = {
    (_EXIF, "SubjectArea"): (_subject, (2, 3, 4)),
    (_EXIF, "SubjectLocation"): (_subject, (2,)),
}
# a box as a string of fractions: left, top, width, height
_STRINGS = (_MICROSOFT, "Rectangle")
# calibration data for the camera's own size and orientation
_CALIBRATION = ((_DJI, "DewarpData"),)
# embedded pictures, which are not turned with the main one
_EMBEDDED_PICTURES = ((_XMP, "Thumbnails"), (_DEPTH, "Data"), (_DEPTH, "ImageWidth"), (_DEPTH, "ImageHeight"))


def follow(packet: Packet, geometry: Geometry) -> tuple[str, ...]:
    """Update a packet's places and sizes. Returns the names of those that could not be updated and were removed."""
    lost: list[str] = []
    for rule in _RULES:
        lost += _follow_rule(packet, rule, geometry)
    for name, (transform, counts) in _LISTS.items():
        for node in list(packet.find(name)):
            items = packet.items(node)
            values = _numbers(packet, items)
            if values is None or len(values) not in counts:
                lost += _remove(packet, node)
            else:
                _write(packet, items, values, transform(geometry, values), whole=True)
    for node in list(packet.find(_STRINGS)):
        lost += _follow_rectangle(packet, node, geometry)
    for node in list(packet.find((_IPTC_EXT, "RegionBoundary"))):
        lost += _follow_boundary(packet, node, geometry)
    if geometry.changes:
        for node in list(packet.find(*_CALIBRATION, *(_EMBEDDED_PICTURES if geometry.orientation != 1 else ()))):
            lost += _remove(packet, node)
    return tuple(dict.fromkeys(lost))


def _follow_rule(packet: Packet, rule: _Rule, geometry: Geometry) -> Iterator[str]:
    around = list(packet.find(*rule.within)) if rule.within else [packet.root]
    for structure in around:
        if not rule.applies(packet, structure):
            continue
        nodes = [packet.field(structure, name) for name in rule.fields]
        present = [node for node in nodes if node is not None]
        if not present:
            continue
        values = tuple(0.0 if node is None else packet.number(node) for node in nodes)
        known = tuple(value for value in values if value is not None)
        # a place cannot be turned if a part of it is missing
        complete = len(present) == len(nodes) or geometry.orientation == 1 or rule.transform is _picture_size
        if len(known) < len(values) or not complete:
            for node in present:
                yield from _remove(packet, node)
            continue
        new = rule.transform(geometry, known)
        pairs = [(node, old, fresh) for node, old, fresh in zip(nodes, known, new, strict=True) if node is not None]
        _write(
            packet, [node for node, _, _ in pairs], [old for _, old, _ in pairs], [f for _, _, f in pairs], rule.whole
        )


def _follow_rectangle(packet: Packet, node: Node, geometry: Geometry) -> Iterator[str]:
    values = _split(packet.text(node))
    if values is None or len(values) != 4:
        yield from _remove(packet, node)
    elif geometry.orientation != 1:
        packet.set(node, ", ".join(map(_decimal, geometry.relative_box(*values))))


def _follow_boundary(packet: Packet, boundary: Node, geometry: Geometry) -> Iterator[str]:
    """Update IPTC's image region: a rectangle (by its corner), a circle or a polygon, in fractions or pixels."""

    def fields(node: Node, *names: str) -> list[Node | None]:
        return [packet.field(node, (_IPTC_EXT, name)) for name in names]

    shape, unit = (packet.text(node) if node else "" for node in fields(boundary, "RbShape", "RbUnit"))
    pixels = unit == "pixel"
    point: Transform = lambda g, v: (g.point if pixels else g.relative_point)(v[0], v[1])  # noqa: E731
    if shape == "rectangle":
        box: Transform = lambda g, v: (g.box if pixels else g.relative_box)(v[0], v[1], v[2], v[3])  # noqa: E731
        groups = [(fields(boundary, "RbX", "RbY", "RbW", "RbH"), box)]
    elif shape == "polygon":
        groups = [(fields(corner, "RbX", "RbY"), point) for corner in packet.items(boundary)]
    else:
        groups = [(fields(boundary, "RbX", "RbY"), point)]
        groups += [(fields(boundary, "RbRx"), _length if pixels else _relative_radius)]
    for nodes, transform in groups:
        values = _numbers(packet, nodes)
        if values is None:
            yield from _remove(packet, boundary)
            return
        _write(packet, [node for node in nodes if node], values, transform(geometry, values), whole=False)


def _relative_radius(geometry: Geometry, values: Numbers) -> Numbers:
    """Transform a radius given as a fraction of the width. A turn by 90° makes the old height the new width."""
    return (values[0] * geometry.before[1] / geometry.before[0],) if geometry.swaps_axes else values


def _numbers(packet: Packet, nodes: Iterable[Node | None]) -> Numbers | None:
    values = [packet.number(node) for node in nodes]
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else None


def _write(packet: Packet, nodes: Iterable[Node], old: Iterable[float], new: Iterable[float], whole: bool) -> None:
    """Write the numbers that have changed; ratios stay ratios."""
    for node, before, after in zip(nodes, old, new, strict=True):
        if math.isclose(before, after, abs_tol=1e-9):
            continue
        if whole:
            packet.set(node, str(math.floor(after + 0.5)))
        elif "/" in packet.text(node):
            ratio = Fraction(after).limit_denominator(1_000_000)
            packet.set(node, f"{ratio.numerator}/{ratio.denominator}")
        else:
            packet.set(node, _decimal(after))


def _decimal(value: float) -> str:
    text = f"{value:.9f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _split(text: str) -> Numbers | None:
    try:
        return tuple(map(float, text.replace(",", " ").split()))
    except ValueError:
        return None


def _remove(packet: Packet, node: Node) -> Iterator[str]:
    packet.remove(node)
    yield node.title


# tags of the EXIF directory, or of the interoperability directory below it
_EXIF_RULES: tuple[tuple[str, tuple[int, ...], Transform], ...] = (
    ("SubjectArea", (0x9214,), _subject),
    ("SubjectLocation", (0xA214,), _subject),
    ("FocalPlaneXResolution and FocalPlaneYResolution", (0xA20E, 0xA20F), _lengths),
)
_RELATED = (0x1001, 0x1002)


def follow_in_exif(block: Exif, geometry: Geometry) -> tuple[str, ...]:
    """Update an EXIF block's places and sizes. Returns the names of those that could not be and were removed."""
    width, height = geometry.after[1], geometry.after[0]
    _set_size(block, block.first, (IMAGE_WIDTH, IMAGE_LENGTH), (width, height))
    private = block.number(block.first, EXIF_IFD)
    if private is None:
        return ()
    _set_size(block, private, (PIXEL_X_DIMENSION, PIXEL_Y_DIMENSION), (width, height))
    below = block.number(private, INTEROP_IFD)
    if below is not None:
        _follow_tags(block, below, _RELATED, _lengths, geometry)
    return tuple(
        name for name, tags, transform in _EXIF_RULES if not _follow_tags(block, private, tags, transform, geometry)
    )


def _set_size(block: Exif, directory: int, tags: tuple[int, int], size: tuple[int, int]) -> None:
    for tag, value in zip(tags, size, strict=True):
        block.set_number(directory, tag, value)


def _follow_tags(block: Exif, directory: int, tags: tuple[int, ...], transform: Transform, geometry: Geometry) -> bool:
    """Transform the values of one tag, or the single values of two. If that fails, remove them and return False."""
    present = [tag for tag in tags if block.find(directory, tag) is not None]
    if not present or not geometry.changes:
        return True
    parts = [block.numbers(directory, tag) for tag in tags]
    if all(parts) and all(len(part or ()) == 1 for part in parts) == (len(tags) > 1):
        values = tuple(value for part in parts for value in part or ())
        if len(tags) > 1 or 2 <= len(values) <= 4:
            new = transform(geometry, values)
            shares = [new] if len(tags) == 1 else [(value,) for value in new]
            if all(block.set_numbers(directory, tag, share) for tag, share in zip(tags, shares, strict=True)):
                return True
    for tag in present:
        block.remove(directory, tag)
    return False
