"""The supported formats, what each can hold, and how to recognise them by a file's first bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True)
class Format:
    """A file format and what this program can write to it.

    Attributes:
        name: lower-case, as in `Picture.format`.
        title: the name shown to users.
        suffixes: new files get the first one.
        max_side: largest width and height in pixels that the format allows and its common decoders accept.
        alpha, deep, floats, icc: whether it can hold transparency, 16-bit samples, float samples, a colour profile.
        animation, pages: whether it can hold several frames, as an animation or as pages.
        extra: name of the optional dependency group that writing it needs.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    max_side: int
    alpha: bool = True
    deep: bool = False
    floats: bool = False
    icc: bool = True
    animation: bool = False
    pages: bool = False
    extra: str | None = None


HEAD = 132
"""The number of a file's first bytes that tell its format."""

_2_31 = 2**31 - 1

FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format("jpeg", "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), 65_500, alpha=False),
        Format("png", "PNG", (".png", ".apng"), 1_000_000, deep=True, animation=True),
        Format("webp", "WebP", (".webp",), 16_383, animation=True),
        Format("tiff", "TIFF", (".tif", ".tiff"), _2_31, deep=True, floats=True, pages=True),
        Format("avif", "AVIF", (".avif", ".avifs"), 32_768, animation=True),
        Format("gif", "GIF", (".gif",), 65_535, icc=False, animation=True),
        Format("jpeg2000", "JPEG 2000", (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"), _2_31, deep=True),
        Format("bmp", "BMP", (".bmp", ".dib"), _2_31, icc=False),
        Format(
            "ppm",
            "PPM, PGM, PBM, PAM",
            (".ppm", ".pgm", ".pbm", ".pnm", ".pam"),
            _2_31,
            deep=True,
            icc=False,
            pages=True,
        ),
        Format("pfm", "PFM", (".pfm",), _2_31, alpha=False, floats=True, icc=False),
        Format("tga", "TGA", (".tga", ".icb", ".vda", ".vst"), 65_535, icc=False),
        Format("ico", "ICO", (".ico",), 256, icc=False),
        Format("jpegxl", "JPEG XL", (".jxl",), 2**30, deep=True, icc=False),
        Format("heic", "HEIC", (".heic", ".heif", ".hif"), 16_384, deep=True, extra="heic"),
    )
}


@dataclass(frozen=True)
class ReadOnlyFormat:
    """A file format that this program reads and never writes.

    Attributes:
        name: lower-case, as in `Picture.format`.
        title: the name shown to users.
        suffixes: in lower case, with the dot.
        output: the format of the result if the user names none; it holds everything that is read.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    output: str = "png"


_RAW_SUFFIXES = (
    ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".raf", ".orf", ".rw2", ".rwl", ".pef",
    ".srw", ".3fr", ".fff", ".iiq", ".erf", ".kdc", ".dcr", ".mef", ".mos", ".mrw", ".x3f",
)  # fmt: skip

READ_ONLY: dict[str, ReadOnlyFormat] = {
    entry.name: entry
    for entry in (
        ReadOnlyFormat("raw", "camera RAW", _RAW_SUFFIXES, output="tiff"),
        ReadOnlyFormat("psd", "Photoshop", (".psd",)),
        ReadOnlyFormat("qoi", "QOI", (".qoi",)),
        ReadOnlyFormat("dds", "DDS", (".dds",)),
        ReadOnlyFormat("pcx", "PCX", (".pcx",)),
        ReadOnlyFormat("sgi", "SGI", (".sgi",)),
        ReadOnlyFormat("xbm", "XBM", (".xbm",)),
        ReadOnlyFormat("exr", "OpenEXR", (".exr",), output="tiff"),
        ReadOnlyFormat("fits", "FITS", (".fits", ".fit", ".fts"), output="tiff"),
        ReadOnlyFormat("dicom", "DICOM", (".dcm",), output="tiff"),
    )
}

SUFFIXES: dict[str, str] = {suffix: name for name, entry in FORMATS.items() for suffix in entry.suffixes}
SUFFIXES |= {suffix: name for name, only in READ_ONLY.items() for suffix in only.suffixes}
"""Lower-case suffix with its dot → name of the format, which may be one that is only read."""

FALLBACK_FORMAT = "png"
"""Written if the input's format cannot be: it is lossless and holds everything but pages."""

_ALIASES = {"jpg": "jpeg", "tif": "tiff", "jp2": "jpeg2000", "j2k": "jpeg2000", "jxl": "jpegxl", "heif": "heic"}
_ALIASES |= {"apng": "png", "pgm": "ppm", "pbm": "ppm", "pnm": "ppm", "pam": "ppm"}


def format_for_name(name: str) -> str | None:
    """The format to write for a file name, a suffix ("png", ".png") or a format's own name, or None."""
    word = name.lower()
    suffix = PurePath(word).suffix or "." + word.lstrip(".")
    bare = suffix[1:]
    meant = SUFFIXES.get(suffix, bare)
    return meant if meant in FORMATS else _ALIASES.get(bare)


def format_names() -> list[str]:
    """A short name of each format, such as `jpg`, for messages and completion."""
    return [entry.suffixes[0].removeprefix(".") for entry in FORMATS.values()]


def suffix_for_format(name: str) -> str:
    """The suffix, with its dot, for new files of a format."""
    return FORMATS[name].suffixes[0]


def default_output(format: str | None) -> str:
    """The format of the result if the user names none: that of the picture if possible, else one that holds it all."""
    if format in READ_ONLY:
        return READ_ONLY[format].output
    entry = FORMATS.get(format or "")
    if entry is None or (entry.extra == "heic" and not has_heif()):
        return FALLBACK_FORMAT
    return entry.name


def sniff(head: bytes) -> str | None:
    """The format announced by a file's first bytes (`HEAD` are enough), or None.

    Many camera RAW files begin like any other TIFF. `decode.format_of` tells them apart.
    """
    if _is_raw(head):
        return "raw"
    for name, magics in _MAGICS.items():
        if head.startswith(magics):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        brands = {head[at : at + 4] for at in range(8, min(len(head), 64) - 3, 4)}
        if brands & {b"avif", b"avis"}:
            return "avif"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            return "heic"
    if head[:1] == b"P" and head[2:3].isspace() and head[1:2] in b"1234567Ff":
        return "pfm" if head[1:2] in b"Ff" else "ppm"
    return _read_through_imageio(head) or ("tga" if _looks_like_tga(head) else None)


def _read_through_imageio(head: bytes) -> str | None:
    for name, magics in _MAGICS_OF_PLUGINS.items():
        if head.startswith(magics):
            return name
    if head[:1] == b"\n" and head[1:2] in b"\0\2\3\4\5" and head[2:3] in b"\0\1" and head[3:4] in b"\1\2\4\x08":
        return "pcx"
    if re.match(rb"\s*(/\*.{0,999}?\*/\s*)?#define[ \t]+\w*_?width[ \t]+\d+\s", head, re.DOTALL):
        return "xbm"
    return "dicom" if head[128:132] == b"DICM" else None


def _looks_like_tga(head: bytes) -> bool:
    """Whether the bytes are a plausible TGA header: TGA has no signature, but its header has few valid values."""
    if len(head) < 18:
        return False
    has_map, kind, map_depth, depth, flags = head[1], head[2], head[7], head[16], head[17]
    if has_map != (kind in (1, 9)) or (has_map and map_depth not in (15, 16, 24, 32)):
        return False
    depths = {1: (8,), 2: (15, 16, 24, 32), 3: (8, 16), 9: (8,), 10: (15, 16, 24, 32), 11: (8, 16)}
    return depth in depths.get(kind, ()) and not flags & 0xC0


_MAGICS: dict[str, tuple[bytes, ...]] = {
    "jpeg": (b"\xff\xd8\xff",),
    "png": (b"\x89PNG\r\n\x1a\n",),
    "gif": (b"GIF87a", b"GIF89a"),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "bmp": (b"BM",),
    "jpeg2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "jpegxl": (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
    "ico": (b"\0\0\1\0",),
}


_MAGICS_OF_PLUGINS: dict[str, tuple[bytes, ...]] = {
    "psd": (b"8BPS\0\1",),
    "qoi": (b"qoif",),
    "dds": (b"DDS |\0\0\0",),
    "sgi": (b"\x01\xda\0\1", b"\x01\xda\0\2", b"\x01\xda\1\1", b"\x01\xda\1\2"),
    "exr": (b"v/1\x01",),
    "fits": (b"SIMPLE  =",),
}

# Fujifilm, Olympus, Panasonic and Leica, Sigma, Minolta, Phase One
_RAW_MAGICS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM", b"IIII", b"MMMM")


def _is_raw(head: bytes) -> bool:
    """Whether the bytes begin a camera RAW file that has a signature of its own."""
    canon = head[4:12] == b"ftypcrx " or head[6:14] == b"HEAPCCDR"
    return canon or (head[:4] == b"II*\0" and head[8:11] == b"CR\2") or head.startswith(_RAW_MAGICS)


def has_heif() -> bool:
    """Whether the optional package that writes HEIC is installed."""
    from importlib.util import find_spec

    return find_spec("pillow_heif") is not None
