"""What is copied from the input as it is: sound, subtitles, attachments, chapters and metadata."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream

from hasn_cli.video.clip import Clip
from hasn_cli.video.containers import CONTAINERS

OWN_KEYS = frozenset(("encoder", "major_brand", "minor_version", "compatible_brands", "duration"))
"""Metadata that describes the input file itself, and would be wrong in the output."""
WRITTEN = {"title", "artist", "album", "comment", "genre", "copyright", "date", "creation_time", "description"}
"""Keys that MP4 writes without being asked for others."""


@dataclass(frozen=True)
class Copied:
    """What of the input's tracks goes to the output.

    Attributes:
        streams: the indices of the tracks that are copied.
        notices: what the container cannot hold, in a few words each.
    """

    streams: tuple[int, ...] = ()
    notices: tuple[str, ...] = ()


def choose_copied(source: InputContainer, clip: Clip, container: str) -> Copied:
    """Which tracks the container can hold. Each is tried with FFmpeg's own writer, in memory."""
    title = CONTAINERS[container].title
    chapters = bool(source.chapters())
    kept: list[Stream] = []
    lost: list[Stream] = []
    for stream in source.streams:
        of_chapters = chapters and stream.type == "data" and not _codec(stream)  # QuickTime's text for each chapter
        if stream.index != clip.stream and not of_chapters:
            fits = container != "y4m" and _fits(stream, CONTAINERS[container].muxer)
            (kept if fits else lost).append(stream)
    notices = dict.fromkeys(f"{title} cannot hold its {_in_words(stream)}" for stream in lost)
    return Copied(tuple(stream.index for stream in kept), tuple(notices))


def _in_words(stream: Stream) -> str:
    names = {"data": "data track", "subtitle": "subtitles", "audio": "sound"}
    codec = _codec(stream)
    return names.get(stream.type, stream.type) + (f" ({codec})" if codec else "")


def _codec(stream: Stream) -> str:
    context = getattr(stream, "codec_context", None)
    return context.name if context is not None else ""


def _fits(stream: Stream, muxer: str) -> bool:
    """Whether the container accepts a track."""
    if stream.type == "attachment":
        return muxer == "matroska"
    try:
        with av.open(io.BytesIO(), "w", format=muxer) as trial:
            add_copy(trial, stream)
            if muxer != "matroska" and stream.type != "audio":
                picture = trial.add_stream("libx264" if muxer != "webm" else "libsvtav1", rate=25)
                picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
            trial.start_encoding()
    except (av.FFmpegError, ValueError, TypeError):
        return False
    return True


def add_copy(target: OutputContainer, stream: Stream) -> Stream | None:
    """Add a track like `stream` to an output; None if it needs no packets (an attachment)."""
    if stream.type == "attachment":
        target.add_attachment(stream.name or "attachment", stream.mimetype or "", stream.data or b"")  # type: ignore[attr-defined]
        return None
    copy = target.add_stream_from_template(stream, opaque=True)
    copy.time_base = stream.time_base
    return copy


def add_copies(
    target: OutputContainer, source: InputContainer, copied: Copied, *, metadata: bool = True
) -> dict[int, Stream]:
    """Add all tracks that are copied. Returns the new track for the index of each old one that has packets."""
    copies = {}
    for index in copied.streams:
        stream = source.streams[index]
        copy = add_copy(target, stream)
        if copy is None:
            continue
        copies[index] = copy
        copy.disposition = stream.disposition
        if metadata:
            copy.metadata.update(own(stream.metadata))
    return copies


def own(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata that is copied. MP4 calls the title of a track its name."""
    kept = {key: value for key, value in metadata.items() if key.lower() not in OWN_KEYS and key[:1] != "_"}
    return {"title": kept["name"], **kept} if "name" in kept else kept


def copy_description(target: OutputContainer, source: InputContainer, *, metadata: bool = True) -> None:
    """Copy chapters and, if wanted, the metadata of the file."""
    if metadata:
        target.metadata.update(own(source.metadata))
    chapters = source.chapters()
    if chapters:
        target.set_chapters(chapters if metadata else [{**chapter, "metadata": {}} for chapter in chapters])


def muxer_options(container: str, metadata: Mapping[str, str]) -> dict[str, str]:
    """Options for FFmpeg's writer: the index first, and keys that MP4 and MOV only write on request."""
    if container not in ("mp4", "mov"):
        return {}
    flags = "+faststart"
    if any(key.lower() not in WRITTEN for key in own(metadata)):
        flags += "+use_metadata_tags"
    return {"movflags": flags}


def packets_of(source: InputContainer, copies: dict[int, Stream]) -> Iterator[Packet[Any]]:
    """The packets of the copied tracks, as they are."""
    streams = [source.streams[index] for index in copies]
    if not streams:
        return
    for packet in source.demux(streams):
        if packet.size and packet.dts is not None:
            packet.stream = copies[packet.stream_index]
            yield packet


def in_order(*sources: Iterator[Packet[Any]]) -> Iterator[Packet[Any]]:
    """The packets of several sources, the earliest first. Each source is in order by itself."""

    def seconds(packet: Packet[Any]) -> Fraction:
        return (packet.dts or 0) * packet.time_base

    waiting = [(iter(source), packet) for source in sources if (packet := next(source, None)) is not None]
    while waiting:
        index = min(range(len(waiting)), key=lambda one: seconds(waiting[one][1]))
        iterator, packet = waiting[index]
        yield packet
        following = next(iterator, None)
        if following is None:
            del waiting[index]
        else:
            waiting[index] = iterator, following
