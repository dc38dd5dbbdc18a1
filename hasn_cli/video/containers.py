"""Which video files there are, and what each container can hold. This module imports no FFmpeg, so it costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Codec = Literal["h264", "h265", "av1", "prores", "ffv1"]
CODECS: tuple[Codec, ...] = ("h264", "h265", "av1", "prores", "ffv1")

HEAD = 4096  # bytes that `is_video` needs


@dataclass(frozen=True)
class Container:
    """A kind of file that videos are written to.

    Attributes:
        title: for people.
        suffixes: of file names, in lower case; the first one is used for outputs.
        muxer: FFmpeg's name for it.
        codecs: the codecs that it can hold, of those that we write.
        streams: whether it can be written to a pipe.
        turns: whether it can say that the frames are turned or mirrored when they are shown.
    """

    title: str
    suffixes: tuple[str, ...]
    muxer: str
    codecs: tuple[Codec, ...]
    streams: bool = False
    turns: bool = True


CONTAINERS = {
    "mp4": Container("MP4", (".mp4", ".m4v"), "mp4", ("h264", "h265", "av1")),
    "mov": Container("MOV", (".mov", ".qt"), "mov", ("h264", "h265", "prores")),
    "mkv": Container("MKV", (".mkv",), "matroska", CODECS, streams=True),
    "webm": Container("WebM", (".webm",), "webm", ("av1",), streams=True),
    "ts": Container("MPEG-TS", (".ts", ".m2ts", ".mts"), "mpegts", ("h264", "h265"), streams=True, turns=False),
    "nut": Container("NUT", (".nut",), "nut", ("h264", "h265", "ffv1"), streams=True, turns=False),
    "y4m": Container("Y4M", (".y4m",), "yuv4mpegpipe", (), streams=True, turns=False),
}
"""Name → container, for outputs. Y4M holds only uncompressed frames."""

READ_ONLY = {
    ".3g2": "mp4",
    ".3gp": "mp4",
    ".asf": "mkv",
    ".avi": "mkv",  # it holds no timestamps
    ".divx": "mkv",
    ".dv": "mkv",
    ".f4v": "mp4",
    ".flv": "mkv",
    ".m2v": "mkv",
    ".mpeg": "mkv",
    ".mpg": "mkv",
    ".mxf": "mkv",
    ".ogv": "mkv",
    ".vob": "mkv",
    ".wmv": "mkv",
}
"""Suffix of a file that is only read → the container of its output."""

BY_SUFFIX = {suffix: name for name, container in CONTAINERS.items() for suffix in container.suffixes}
SUFFIXES = frozenset(BY_SUFFIX) | frozenset(READ_ONLY)

AMBIGUOUS = frozenset((".ts", ".mts", ".dv", ".nut"))
"""Endings of other files, too (TypeScript, for one). In folders, files with these names are left out."""

_STARTS = (
    b"nut/multimedia container",
    b"YUV4MPEG2 ",
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG-1 and MPEG-2 video
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"OggS",
    b"\x06\x0e\x2b\x34",  # MXF
)
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_TS_PACKET = 188


def container_for_name(name: str) -> str | None:
    """The container that a file name or a format's name (`mp4`) asks for, as an output; None if it is not a video."""
    lower = name.lower()
    if lower in CONTAINERS:
        return lower
    return BY_SUFFIX.get(Path(lower).suffix)


def default_container(name: str) -> str:
    """The container for the output of a video with this file name."""
    suffix = Path(name.lower()).suffix
    return BY_SUFFIX.get(suffix) or READ_ONLY.get(suffix, "mkv")


def has_video_name(name: str) -> bool:
    """Whether a file name ends like that of a video."""
    return Path(name.lower()).suffix in SUFFIXES


def is_video(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a video.

    HEIC, AVIF and CR3 pictures begin like an MP4, too: ask for pictures first.
    """
    if head.startswith(_STARTS) or head[4:8] in _BOXES or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return True
    return any(len(head) > start + _TS_PACKET and head[start] == head[start + _TS_PACKET + start] == 0x47
               for start in (0, 4))  # fmt: skip
