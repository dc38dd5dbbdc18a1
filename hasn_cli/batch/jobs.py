"""Turn the user's arguments into jobs: which pictures and videos to read, and where to write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from hasn_cli.batch import remote
from hasn_cli.batch.lists import read_list as read_list
from hasn_cli.batch.location import Place, is_video, readable_suffixes, resolved
from hasn_cli.batch.naming import Naming, refuse_clashes, without_repeats
from hasn_cli.batch.walk import OWN_OUTPUT, OnSkip, Walk, unreachable, without_own_outputs
from hasn_cli.errors import HasnError, ImageError, UsageError

if TYPE_CHECKING:
    pass


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
    `walk.py` describes which files are taken from folders. Without `output`, or if an output would be written beside
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
    naming = Naming(output, named, listed, suffix, default_suffix, format, container, stills)
    walk = Walk(
        readable=readable_suffixes(),
        recursive=recursive,
        include=include,
        exclude=exclude,
        follow_links=follow_links,
        suffix=suffix,
        avoid=None if naming.folder is None else resolved(naming.folder),
        on_skip=on_skip or (lambda path, reason: None),
    )
    kept = set(without_own_outputs([*named, *listed], walk))
    found = [job for entry in named if entry in kept for job in _jobs_of(entry, walk, naming)]
    found += [job for entry in listed if entry in kept for job in _jobs_of(entry, walk, naming, listed=True)]
    jobs = [replace(job, index=i, follow_links=follow_links) for i, job in enumerate(without_repeats(found))]
    refuse_clashes(jobs)
    return jobs


def _jobs_of(entry: str | Path, walk: Walk, naming: Naming, listed: bool = False) -> Iterator[Job]:
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


def _jobs_of_folder(folder: Path, walk: Walk, naming: Naming, listed: bool) -> Iterator[Job]:
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


def _jobs_of_url(url: str, walk: Walk, naming: Naming) -> Iterator[Job]:
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


def _journal_root(naming: Naming, target: Place) -> Place | None:
    if target == "-":
        return None
    if naming.folder is not None:
        return naming.folder
    return target.parent if isinstance(target, Path) else target.rpartition("/")[0]
