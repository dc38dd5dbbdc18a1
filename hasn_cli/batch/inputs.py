"""From what the user names to jobs: which pictures are read, and what each output is called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from hasn_cli.batch import remote
from hasn_cli.batch.clashes import refuse_clashes, without_repeats
from hasn_cli.batch.folders import OWN_OUTPUT, OnSkip, Walk, unreachable
from hasn_cli.batch.lists import read_list as read_list
from hasn_cli.errors import HasnError, ImageError, UsageError

if TYPE_CHECKING:
    from hasn_cli.enlarge import Size

Place = Path | str
"""A file: a local path; an fsspec URL; or `-`, the standard stream."""

FALLBACK_FORMAT = "png"  # where the input's format cannot be written: it holds everything but frames, and loses nothing


@dataclass(frozen=True)
class Job:
    """One picture to be done.

    Attributes:
        index: its place in the batch, from 0.
        source: where it is read.
        target: where the result goes; empty where `problem` stands.
        name: what messages call it.
        root: the folder, or URL, of the outputs that share a journal with this; None: nothing remembers it.
        problem: why it cannot even be tried.
        follow_links: whether folders between `root` and the output may be links.
    """

    index: int
    source: Place
    target: Place
    name: str
    root: Place | None = None
    problem: HasnError | None = None
    follow_links: bool = False

    @property
    def target_name(self) -> str:
        """What messages call the output."""
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
    follow_links: bool = False,
    on_skip: OnSkip | None = None,
) -> list[Job]:
    """Every picture that is meant, each with its output's name.

    A file named as an input is always taken; inside folders, `folders.py` says what is. Without `output`, or
    where the output would lie beside its input, the name gets the suffix.

    Args:
        inputs: files, folders, URLs, or `-` for the standard input.
        output: a file, a folder (ends in a slash, exists, or there is more than one file to come), or `-`.
        listed: more inputs, from `read_list`: relative ones keep their path below an output folder.
        recursive: folders below folders too; their tree is kept.
        include: globs, one of which a file in a folder must match.
        exclude: globs, none of which a file or folder in a folder may match.
        suffix: put after each name, wherever the output lies.
        default_suffix: what is put there when the output lies beside its input (see `size_suffix`).
        format: the format asked for; else the output's name says, else the input's.
        follow_links: links out of a folder, and links to folders, too.
        on_skip: told of what is left out of folders.

    Raises:
        UsageError: nothing is named, or two outputs would be one, or one would be an input.
    """
    if "" in (*map(str, inputs), *listed):
        raise UsageError("an input's name is empty", "a shell variable may be unset: quote it and check it")
    if not inputs and not listed:
        raise UsageError("no input", "name pictures, folders, or - for the standard input")
    inputs = [remote.local_path(entry) for entry in inputs]
    listed = ["./-" if entry == "-" else remote.local_path(entry) for entry in listed]
    output = None if output is None else remote.local_path(output)
    naming = _Naming(output, inputs, listed, suffix, default_suffix, format)
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
    found = [job for entry in inputs for job in _jobs_of(entry, walk, naming)]
    for entry in listed:
        found += _jobs_of(entry, walk, naming, listed=True)
    jobs = [replace(job, index=i, follow_links=follow_links) for i, job in enumerate(without_repeats(found))]
    refuse_clashes(jobs)
    return jobs


def size_suffix(size: Size) -> str:
    """What tells an output from its input: `_x4`, `_x1.5`, `_w800`, `_h600`, `_800x600`, `_2mp`."""
    if size.width and size.height:
        return f"_{size.width}x{size.height}"
    if size.width:
        return f"_w{size.width}"
    if size.height:
        return f"_h{size.height}"
    if size.fit:
        return f"_{size.fit[1]}x{size.fit[0]}"  # kept as (height, width)
    if size.megapixels:
        return f"_{float(size.megapixels):g}mp"
    return f"_x{float(size.factor or 4):g}"


def readable_suffixes() -> frozenset[str]:
    """File suffixes, lower case with the dot, that `hasn_cli.images` reads."""
    from hasn_cli.images.formats import SUFFIXES

    return frozenset(SUFFIXES)


class _Naming:
    """Where outputs go."""

    def __init__(
        self,
        output: str | Path | None,
        inputs: Sequence[str | Path],
        listed: Sequence[str],
        suffix: str | None,
        default_suffix: str,
        format: str | None,
    ) -> None:
        self.output = None if output is None else str(output)
        if suffix is not None and (not suffix.isprintable() or "/" in suffix or "\\" in suffix):
            raise UsageError(f"a suffix is part of a name, and {suffix!r} cannot be")
        self.suffix = suffix
        self.default_suffix = default_suffix
        self.format = format
        self._entries = [str(entry) for entry in (*inputs, *listed)]
        self._many = len(self._entries) > 1 or any(_is_folder(entry) for entry in self._entries)
        if self._many and self.output == "-":
            raise UsageError("several pictures cannot all go to the standard output", "give a folder: -o OUT/")
        if self.folder is None and self.output is not None:
            if suffix is not None:
                raise UsageError("a suffix is put after names, and -o gives the one name", "give a folder: -o OUT/")
            if self.output != "-":
                self._check_file_name()

    @cached_property
    def keep_folder_names(self) -> bool:
        """Whether there is more than one input folder; asked for late, since of URLs it takes a while to tell."""
        folders = (entry for entry in self._entries if _is_folder(entry))
        return len(list(islice(folders, 2))) > 1

    @cached_property
    def folder(self) -> Place | None:
        """The output folder, where there is one."""
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
        from hasn_cli.images.formats import format_for_name

        if self.format is None and format_for_name(self.output or "") is None:
            raise UsageError(f"{self.output}: the name tells no format", "give one: -f png")

    def target(self, source: Place, relative: PurePosixPath) -> Place:
        """The output of `source`, whose path below what the user named is `relative`.

        Raises:
            UsageError: that path would lead out of the output folder.
        """
        if self.output is not None and self.folder is None:
            return self.output if self.output == "-" or remote.is_url(self.output) else Path(self.output)
        if source == "-" and self.folder is None:
            return "-"
        folder = self.folder
        if folder is None:
            below: Place = Path(source).parent if isinstance(source, Path) else source.rpartition("/")[0]
            beside = True
        else:
            below = _join(folder, relative.parent)
            beside = _same_folder(below, source)
        suffix = self.suffix if self.suffix is not None else self.default_suffix if beside else ""
        target = _join(below, self._name(relative.name, source, suffix))
        if folder is not None and not _lies_below(target, folder):
            raise UsageError(
                f"{source} would be written to {target}, outside {folder}", "name its file, and the output"
            )
        return target

    def _name(self, name: str, source: Place, suffix: str) -> PurePosixPath:
        from hasn_cli.images.formats import FORMATS, SUFFIXES, suffix_for_format

        path = PurePosixPath(name)
        own = SUFFIXES.get(path.suffix.lower())
        stem, ending = (path.stem, path.suffix) if own else (name, "")
        format = self.format or own or sniffed(source)
        if format not in FORMATS:
            format = FALLBACK_FORMAT
        return PurePosixPath(f"{stem}{suffix}{ending if own == format else suffix_for_format(format)}")


def _names_a_picture(name: str) -> bool:
    from hasn_cli.images.formats import SUFFIXES

    return Path(name).suffix.lower() in SUFFIXES


def sniffed(source: Place) -> str | None:
    """The format that a local file's first bytes announce."""
    from hasn_cli.images.formats import sniff

    if not isinstance(source, Path) or not source.is_file():
        return None
    try:
        with source.open("rb") as stream:
            return sniff(stream.read(64))
    except OSError:
        return None


def _jobs_of(entry: str | Path, walk: Walk, naming: _Naming, listed: bool = False) -> Iterator[Job]:
    text = str(entry)
    if text == "-":
        yield Job(0, "-", naming.target("-", PurePosixPath("stdin")), "standard input")
    elif remote.is_url(text):
        yield from _jobs_of_url(text, walk, naming)
    elif problem := unreachable(Path(text)):
        yield Job(0, Path(text), "", text, problem=problem)
    elif Path(text).is_dir():
        yield from _jobs_of_folder(Path(text), walk, naming, listed)
    else:
        path = Path(text)
        relative = PurePosixPath(path.as_posix() if listed and _is_inside(path) else path.name)
        target = naming.target(path, relative)
        yield Job(0, path, target, text, _journal_root(naming, target))


def _is_inside(path: Path) -> bool:
    """Whether a path of a list, kept below the output folder, stays there."""
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
        yield Job(0, path, target, str(path), root)


def _nothing_in(folder: Place, walk: Walk, own_outputs: bool) -> ImageError:
    if own_outputs:
        hint = "name the files themselves to enlarge them once more"
        return ImageError(f"{folder}: no pictures in this folder but hasn's own outputs", hint)
    hint = "-r looks into the folders below, too"
    return ImageError(f"{folder}: no pictures in this folder", None if walk.recursive else hint)


def _jobs_of_url(url: str, walk: Walk, naming: _Naming) -> Iterator[Job]:
    try:
        is_folder = remote.is_folder(url)
    except HasnError as error:
        yield Job(0, url, "", url, problem=error)
        return
    if not is_folder:
        target = naming.target(url, PurePosixPath(url.rpartition("/")[2]))
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
    except (OSError, HasnError):  # out of reach; told when its turn comes
        return False


def _join(folder: Place, below: PurePosixPath) -> Place:
    if isinstance(folder, Path):
        return folder / below
    return remote.join(folder, below)


def _lies_below(target: Place, folder: Place) -> bool:
    """Whether the names between the two lead nowhere else; what links there are is the user's business."""
    if isinstance(target, Path):
        return Path(os.path.normpath(target.absolute())).is_relative_to(os.path.normpath(Path(folder).absolute()))
    below = PurePosixPath(target.removeprefix(f"{folder}/"))
    return not below.is_absolute() and ".." not in below.parts


def _same_folder(folder: Place, source: Place) -> bool:
    if isinstance(folder, Path) and isinstance(source, Path):
        return folder.exists() and source.parent.resolve() == folder.resolve()
    return isinstance(source, str) and re.sub(r"/[^/]*$", "", source) == str(folder)
