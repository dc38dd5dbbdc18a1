"""Turn the user's arguments into jobs: which pictures to read, and how to name each output."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from hasn_cli.batch import remote
from hasn_cli.batch.clashes import refuse_clashes, without_repeats
from hasn_cli.batch.folders import OWN_OUTPUT, OnSkip, Walk, sniffed, unreachable, without_own_outputs
from hasn_cli.batch.lists import read_list as read_list
from hasn_cli.errors import HasnError, ImageError, UsageError
from hasn_cli.video import containers

if TYPE_CHECKING:
    from hasn_cli.enlarge import Size

Place = Path | str
"""A file: a local path; an fsspec URL; or `-`, the standard stream."""


@dataclass(frozen=True)
class Job:
    """One picture to process.

    Attributes:
        index: its place in the batch, from 0.
        source: where to read it.
        target: where to write the result; empty if there is a `problem`.
        name: its name in messages.
        root: the folder or URL of the outputs that share a journal; None: no journal.
        problem: why it cannot be processed at all.
        follow_links: whether folders between `root` and the output may be links.
        video: it is a video, by its name or its first bytes.
    """

    index: int
    source: Place
    target: Place
    name: str
    root: Place | None = None
    problem: HasnError | None = None
    follow_links: bool = False
    video: bool = False

    @property
    def target_name(self) -> str:
        """The output's name in messages."""
        return "standard output" if self.target == "-" else str(self.target)


def find_jobs(
    inputs: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    listed: Sequence[str] = (),
    recursive: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    suffix: str | None = None,
    default_suffix: str = "_x4",
    format: str | None = None,
    container: str | None = None,
    stills: bool = False,
    follow_links: bool = False,
    on_skip: OnSkip | None = None,
) -> list[Job]:
    """Find all pictures to upscale, and name their outputs.

    A file that is named directly is always taken, unless its input is named too (see `without_own_outputs`).
    `folders.py` describes which files are taken from folders. Without `output`, or if an output would be written beside
    its input, its name gets the suffix.

    Args:
        inputs: files, folders, URLs, or `-` for the standard input.
        output: a file, a folder, or `-`. It is a folder if it ends in a slash or exists, or if there may be several
            pictures.
        listed: more inputs, from `read_list`. Relative ones keep their path below an output folder.
        recursive: include subfolders, and keep their structure.
        include: globs; files in folders must match one of them.
        exclude: globs; files and folders in folders that match one of them are left out.
        suffix: added to the name of each output.
        default_suffix: added to outputs beside their inputs if there is no `suffix` (see `size_suffix`).
        format: the output format. By default it follows from the output's name, else from the input.
        container: the same for videos, one of `video.containers.CONTAINERS`.
        stills: make a picture of the first frame of each video.
        follow_links: follow links out of a folder, and links to folders.
        on_skip: called with what is left out.

    Raises:
        UsageError: there are no inputs, two outputs would be the same file, or an output would overwrite an input.
    """
    if "" in (*map(str, inputs), *listed):
        raise UsageError("an input's name is empty", "a shell variable may be unset: quote it and check it")
    if not inputs and not listed:
        raise UsageError("no input was given", "name pictures or folders, or - for the standard input")
    named = [remote.local_path(entry) for entry in inputs]
    listed = ["./-" if entry == "-" else remote.local_path(entry) for entry in listed]
    output = None if output is None else remote.local_path(output)
    naming = _Naming(output, named, listed, suffix, default_suffix, format, container, stills)
    walk = Walk(
        readable=readable_suffixes(),
        recursive=recursive,
        include=include,
        exclude=exclude,
        follow_links=follow_links,
        suffix=suffix,
        avoid=None if naming.folder is None else _resolved(naming.folder),
        on_skip=on_skip or (lambda path, reason: None),
    )
    kept = set(without_own_outputs([*named, *listed], walk))
    found = [job for entry in named if entry in kept for job in _jobs_of(entry, walk, naming)]
    found += [job for entry in listed if entry in kept for job in _jobs_of(entry, walk, naming, listed=True)]
    jobs = [replace(job, index=i, follow_links=follow_links) for i, job in enumerate(without_repeats(found))]
    refuse_clashes(jobs)
    return jobs


def size_suffix(size: Size) -> str:
    """The default suffix of outputs, by their size: `_x4`, `_x1.5`, `_w800`, `_h600`, `_800x600`, `_2mp`."""
    if size.width and size.height:
        return f"_{size.width}x{size.height}"
    if size.width:
        return f"_w{size.width}"
    if size.height:
        return f"_h{size.height}"
    if size.fit:
        return f"_{size.fit[1]}x{size.fit[0]}"  # fit is (height, width)
    if size.megapixels:
        return f"_{float(size.megapixels):g}mp"
    return f"_x{float(size.factor or 4):g}"


def readable_suffixes() -> frozenset[str]:
    """The file suffixes of pictures and videos that are taken from folders, in lower case and with the dot."""
    return picture_suffixes() | (containers.SUFFIXES - containers.AMBIGUOUS)


def picture_suffixes() -> frozenset[str]:
    """The file suffixes that `hasn_cli.images` reads, in lower case and with the dot."""
    from hasn_cli.images.formats import SUFFIXES

    return frozenset(SUFFIXES)


def is_video(source: Place) -> bool:
    """Whether an input is a video: by its name, else by its first bytes. Pictures come first."""
    from hasn_cli.images.formats import HEAD, SUFFIXES, sniff

    if source == "-":
        head = peeked(sys.stdin.buffer)
    elif isinstance(source, str) or not source.is_file():
        return containers.has_video_name(str(source))
    else:
        if source.suffix.lower() in SUFFIXES:
            return False
        try:
            with source.open("rb") as stream:
                head = stream.read(max(HEAD, containers.HEAD))
        except OSError:
            return False
    return containers.has_video_name(str(source)) or (sniff(head[:HEAD]) is None and containers.is_video(head))


def peeked(stream: BinaryIO) -> bytes:
    """The first bytes of a stream, which stay in it. None, if it cannot keep them."""
    peek = getattr(stream, "peek", None)
    return bytes(peek(containers.HEAD)) if peek is not None else b""


class _Naming:
    """Names the outputs."""

    def __init__(
        self,
        output: str | Path | None,
        inputs: Sequence[str | Path],
        listed: Sequence[str],
        suffix: str | None,
        default_suffix: str,
        format: str | None,
        container: str | None = None,
        stills: bool = False,
    ) -> None:
        self.output = None if output is None else str(output)
        if suffix is not None and (not suffix.isprintable() or "/" in suffix or "\\" in suffix):
            raise UsageError(f"the suffix {suffix!r} cannot be part of a file name")
        self.suffix = suffix
        self.default_suffix = default_suffix
        self.format = format
        self.container = container
        self.stills = stills
        self._entries = [str(entry) for entry in (*inputs, *listed)]
        self._many = len(self._entries) > 1 or any(_is_folder(entry) for entry in self._entries)
        if self._many and self.output == "-":
            raise UsageError("several pictures cannot be written to stdout", "give a folder: -o OUT/")
        if self.folder is None and self.output is not None:
            if suffix is not None:
                raise UsageError("--suffix has no effect if -o names the output file", "give a folder: -o OUT/")
            if self.output != "-":
                self._check_file_name()

    @cached_property
    def keep_folder_names(self) -> bool:
        """Whether there are several input folders. Computed only when needed, since it takes a while for URLs."""
        folders = (entry for entry in self._entries if _is_folder(entry))
        return len(list(islice(folders, 2))) > 1

    @cached_property
    def folder(self) -> Place | None:
        """The output folder, or None if there is none."""
        output = self.output
        if output is None or output == "-":
            return None
        if remote.is_url(output):
            return output.rstrip("/") if self._many or output.endswith("/") else None
        path = Path(output)
        if path.is_dir() or output.endswith(("/", os.sep)):
            return path
        if self._many and path.exists():
            raise UsageError(f"{output} is a file, and there are several inputs", "give a folder: -o OUT/")
        if self._many and _names_a_picture(output):
            raise UsageError(f"{output} names one picture, and there are several inputs", "give a folder: -o OUT/")
        return path if self._many else None

    def _check_file_name(self) -> None:
        from hasn_cli.images.formats import READ_ONLY, SUFFIXES, format_for_name

        if own := READ_ONLY.get(SUFFIXES.get(Path(self.output or "").suffix.lower(), "")):
            raise UsageError(f"{self.output}: {own.title} cannot be written", f"use an ending such as .{own.output}")
        if containers.container_for_name(self.output or "") is not None:
            return
        if other := containers.READ_ONLY.get(Path(self.output or "").suffix.lower()):
            message = f"{self.output}: {Path(self.output or '').suffix.lower()} can be read, but not written"
            raise UsageError(message, f"use an ending such as .{other}")
        if self.format is None and self.container is None and format_for_name(self.output or "") is None:
            ending = Path(self.output or "").suffix
            what = f"unknown format {ending}" if ending else "the name has no ending that tells the format"
            raise UsageError(f"{self.output}: {what}", "use an ending such as .png or .jpg, or give a format: -f png")

    def hint_if_missing(self, entry: str) -> str | None:
        """The hint for an input that does not exist. The last of several inputs may be meant as the output."""
        last = len(self._entries) > 1 and entry == self._entries[-1] and self.output is None
        return f"if it is the output: -o {entry}" if last and (_names_a_picture(entry) or entry.endswith("/")) else None

    def target(self, source: Place, relative: PurePosixPath) -> Place:
        """The output of `source`, which has the path `relative` below the folder that the user named.

        Raises:
            UsageError: the output would be outside of the output folder.
        """
        if self.output is not None and self.folder is None:
            return self.output if self.output == "-" or remote.is_url(self.output) else Path(self.output)
        if source == "-" and self.folder is None:
            return "-"
        folder = self.folder
        if folder is None:
            below: Place = source.parent if isinstance(source, Path) else source.rpartition("/")[0]
            below = Path() if remote.is_web(source) else below  # the current folder
            beside = True
        else:
            below = _join(folder, relative.parent)
            beside = _same_folder(below, source)
        suffix = self.suffix if self.suffix is not None else self.default_suffix if beside else ""
        target = _join(below, self._name(relative.name, source, suffix))
        if folder is not None and not _lies_below(target, folder):
            message = f"the output of {source} would be {target}, outside {folder}"
            raise UsageError(message, "upscale this file alone, with -o and a file name")
        return target

    def _name(self, name: str, source: Place, suffix: str) -> PurePosixPath:
        from hasn_cli.images.formats import SUFFIXES, default_output, suffix_for_format

        path = PurePosixPath(name)
        own = SUFFIXES.get(path.suffix.lower())
        if own is None and is_video(source) and not self.stills:
            return self._video_name(path, suffix)
        if own is None and containers.has_video_name(name):
            return PurePosixPath(f"{path.stem}{suffix}{suffix_for_format(self.format or 'png')}")
        stem, ending = (path.stem, path.suffix) if own else (name, "")
        format = self.format or default_output(own or sniffed(source))
        return PurePosixPath(f"{stem}{suffix}{ending if own == format else suffix_for_format(format)}")

    def _video_name(self, path: PurePosixPath, suffix: str) -> PurePosixPath:
        named = containers.has_video_name(path.name)
        container = self.container or containers.default_container(path.name)
        own = containers.BY_SUFFIX.get(path.suffix.lower())
        ending = path.suffix if own == container else containers.CONTAINERS[container].suffixes[0]
        return PurePosixPath(f"{path.stem if named else path.name}{suffix}{ending}")


def _names_a_picture(name: str) -> bool:
    """Whether a name ends like that of a picture or a video."""
    from hasn_cli.images.formats import SUFFIXES

    return Path(name).suffix.lower() in SUFFIXES or containers.has_video_name(name)


def _jobs_of(entry: str | Path, walk: Walk, naming: _Naming, listed: bool = False) -> Iterator[Job]:
    text = str(entry)
    if text == "-":
        video = is_video("-")
        yield Job(0, "-", naming.target("-", PurePosixPath("stdin")), "standard input", video=video)
    elif remote.is_url(text):
        yield from _jobs_of_url(text, walk, naming)
    elif problem := unreachable(Path(text), naming.hint_if_missing(text)):
        yield Job(0, Path(text), "", text, problem=problem)
    elif Path(text).is_dir():
        yield from _jobs_of_folder(Path(text), walk, naming, listed)
    else:
        path = Path(text)
        relative = PurePosixPath(path.as_posix() if listed and _is_inside(path) else path.name)
        target = naming.target(path, relative)
        yield Job(0, path, target, text, _journal_root(naming, target), video=is_video(path))


def _is_inside(path: Path) -> bool:
    """Whether a path from a list stays below the output folder when it is appended to it."""
    return not path.is_absolute() and ".." not in path.parts


def _jobs_of_folder(folder: Path, walk: Walk, naming: _Naming, listed: bool) -> Iterator[Job]:
    left_out: list[str] = []
    closed: list[Job] = []

    def note(path: str, reason: str) -> None:
        left_out.append(reason)
        walk.on_skip(path, reason)

    def note_closed(path: str, reason: str) -> None:
        closed.append(Job(0, Path(path), "", path, problem=ImageError(f"{path}: {reason}")))

    try:
        files = replace(walk, on_skip=note, on_closed=note_closed).files(folder)
    except OSError as error:
        yield Job(0, folder, "", str(folder), problem=ImageError(f"{folder}: {error.strerror}"))
        return
    yield from closed
    if not files and not closed:
        yield Job(0, folder, "", str(folder), problem=_nothing_in(folder, walk, OWN_OUTPUT in left_out))
    kept = PurePosixPath(folder.resolve().name) if naming.keep_folder_names else PurePosixPath()
    if listed and _is_inside(folder):
        kept = PurePosixPath(folder.as_posix())
    for path in files:
        target = naming.target(path, kept / path.relative_to(folder).as_posix())
        root = folder if naming.folder is None else _journal_root(naming, target)
        yield Job(0, path, target, str(path), root, video=is_video(path))


def _nothing_in(folder: Place, walk: Walk, own_outputs: bool) -> ImageError:
    if own_outputs:
        hint = "to enlarge these again, name the files themselves"
        return ImageError(f"{folder}: all pictures in this folder are outputs of hasn", hint)
    which = " that --include and --exclude select" if walk.include or walk.exclude else ""
    hint = "-r includes subfolders"
    return ImageError(f"{folder}: no pictures in this folder{which}", None if walk.recursive else hint)


def _jobs_of_url(url: str, walk: Walk, naming: _Naming) -> Iterator[Job]:
    try:
        is_folder = remote.is_folder(url)
    except HasnError as error:
        yield Job(0, url, "", url, problem=error)
        return
    if not is_folder:
        target = naming.target(url, PurePosixPath(remote.name_of(url)))
        yield Job(0, url, target, url, _journal_root(naming, target))
        return
    folder = url.rstrip("/")
    left_out: list[str] = []

    def note(path: str, reason: str) -> None:
        left_out.append(reason)
        walk.on_skip(path, reason)

    try:
        names = replace(walk, on_skip=note).names_at(folder)
    except HasnError as error:
        yield Job(0, url, "", url, problem=error)
        return
    if not names:
        yield Job(0, url, "", url, problem=_nothing_in(url, walk, OWN_OUTPUT in left_out))
    own_name = folder.rpartition("/")[2]
    kept = PurePosixPath(own_name if naming.keep_folder_names and not own_name.endswith(":") else "")
    for name in names:
        source = f"{folder}/{name}"
        target = naming.target(source, kept / name)
        yield Job(0, source, target, source, folder if naming.folder is None else _journal_root(naming, target))


def _journal_root(naming: _Naming, target: Place) -> Place | None:
    if target == "-":
        return None
    if naming.folder is not None:
        return naming.folder
    return target.parent if isinstance(target, Path) else target.rpartition("/")[0]


def _resolved(folder: Place) -> Place:
    return folder.resolve() if isinstance(folder, Path) else folder


def _is_folder(text: str) -> bool:
    if text == "-":
        return False
    try:
        return remote.is_folder(text) if remote.is_url(text) else Path(text).is_dir()
    except (OSError, HasnError):  # it cannot be reached, which is reported when its job runs
        return False


def _join(folder: Place, below: PurePosixPath) -> Place:
    if isinstance(folder, Path):
        return folder / below
    return remote.join(folder, below)


def _lies_below(target: Place, folder: Place) -> bool:
    """Whether `target` is below `folder` by its name. Links are not resolved."""
    if isinstance(target, Path):
        return Path(os.path.normpath(target.absolute())).is_relative_to(os.path.normpath(Path(folder).absolute()))
    below = PurePosixPath(target.removeprefix(f"{folder}/"))
    return not below.is_absolute() and ".." not in below.parts


def _same_folder(folder: Place, source: Place) -> bool:
    if isinstance(folder, Path) and isinstance(source, Path):
        return folder.exists() and source.parent.resolve() == folder.resolve()
    return isinstance(source, str) and re.sub(r"/[^/]*$", "", source) == str(folder)
