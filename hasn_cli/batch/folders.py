"""What a folder given as input holds: which of its files are meant, in which order.

Left out: hidden names, names that are no picture's, the program's own outputs, links that lead out of the folder, and
what `--include` and `--exclude` say.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath

from hasn_cli.batch import journal, remote
from hasn_cli.errors import ImageError, OutputError, UsageError
from hasn_cli.redaction import redacted

OnSkip = Callable[[str, str], None]
"""Told of each file or folder that is left out, and why."""

OWN_OUTPUT = "an output of hasn"

# the suffixes that inputs.size_suffix gives
_OWN_SUFFIX = re.compile(r"(_x\d+(\.\d+)?|_\d+x\d+|_[wh]\d+|_\d+(\.\d+)?mp)$")


@dataclass(frozen=True)
class Walk:
    """How folders are gone through.

    Attributes:
        readable: file suffixes (lower case, with the dot) that are pictures'.
        recursive: into folders below, too.
        include: globs of which a file must match one, where there are any.
        exclude: globs of which neither a file nor a folder may match one.
        follow_links: also links out of the folder, and links to folders.
        suffix: what own outputs end in, besides the default suffixes.
        avoid: the outputs' folder, resolved, which is not entered; or its URL.
        on_skip: told of what is left out for a reason that may surprise.
        on_closed: told of folders that cannot be listed.

    Raises:
        UsageError: a glob that is none.
    """

    readable: frozenset[str]
    recursive: bool = False
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    follow_links: bool = False
    suffix: str | None = None
    avoid: Path | str | None = None
    on_skip: OnSkip = field(default=lambda path, reason: None)
    on_closed: OnSkip = field(default=lambda path, reason: None)

    def __post_init__(self) -> None:
        for glob in (*self.include, *self.exclude):
            _compiled(glob)

    def files(self, root: Path) -> list[Path]:
        """The pictures in `root`, in natural order (a2 before a10), folder by folder.

        Raises:
            OSError: `root` itself cannot be listed; a folder below it that cannot is left out and told.
        """
        visited: list[Path] = []
        found = set(self._below(root, root, visited, (root.resolve(),)))
        for folder in visited:
            found -= self._told_of_in(folder, found)
        return sort_naturally(found, root)

    def _told_of_in(self, folder: Path, found: Collection[Path]) -> frozenset[Path]:
        """The files among those found that the journal in `folder` tells of as own outputs."""
        try:
            own = journal.outputs_recorded(folder, found)
        except OutputError as error:  # it is not going to be written to here, so nothing else depends on it
            self.on_skip(str(folder / journal.NAME), error.message.partition(": ")[2])
            return frozenset()
        for path in sorted(own):
            self.on_skip(str(path), OWN_OUTPUT)
        return own

    def names_at(self, url: str) -> list[PurePosixPath]:
        """The pictures below the folder `url`, as paths relative to it, in natural order.

        Raises:
            HasnError: it cannot be listed.
        """
        from natsort import natsorted, ns

        found = natsorted(remote.files(url, self.recursive, self.on_skip), alg=ns.PATH | ns.IGNORECASE)
        pictures = [PurePosixPath(name) for name in found if is_picture(name, self.readable)]
        stems: dict[PurePosixPath, set[str]] = {PurePosixPath(): set()}
        for name in pictures:
            stems.setdefault(name.parent, set()).add(name.stem)
        own = frozenset[str]().union(*map(self._urls_told_of, (remote.join(url, folder) for folder in stems)))
        outputs = remote.relative(self.avoid, url) if isinstance(self.avoid, str) else None
        return [
            name
            for name in pictures
            if not (outputs and name.is_relative_to(outputs))
            and not any(part.startswith(".") for part in name.parts)
            and not any(self._excluded(part) for part in (name, *name.parents))
            and self._wanted_at(url, name, own, stems[name.parent])
        ]

    def _urls_told_of(self, url: str) -> frozenset[str]:
        try:
            return journal.urls_recorded(url)
        except OutputError as error:
            self.on_skip(*error.message.split(": ", 1))
            return frozenset()

    def _wanted_at(self, url: str, name: PurePosixPath, own: frozenset[str], stems: set[str]) -> bool:
        place = remote.join(url, name)
        if not self._included(name):
            return False
        if redacted(place) in own or self._named_as_own(name, stems):
            self.on_skip(place, OWN_OUTPUT)
            return False
        return True

    def _below(self, folder: Path, root: Path, visited: list[Path], above: tuple[Path, ...]) -> Iterator[Path]:
        visited.append(folder)
        entries = list(os.scandir(folder))
        stems = {Path(entry.name).stem for entry in entries if is_picture(entry.name, self.readable)}
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith(".") or self._excluded(path.relative_to(root)):
                continue
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError as error:  # a link that leads round to itself, or to where nobody may look
                meant = is_picture(entry.name, self.readable) and self._included(path.relative_to(root))
                (self.on_closed if meant else self.on_skip)(str(path), error.strerror or str(error))
                continue
            if is_folder:
                yield from self._folder(entry, path, root, visited, above)
            elif is_picture(entry.name, self.readable) and self._wanted(path, root, stems):
                if is_file:
                    yield path
                elif entry.is_symlink() and not path.exists():
                    self.on_closed(str(path), f"a link to {path.readlink()}, which does not exist")
                else:
                    self.on_skip(str(path), "a pipe, socket or device")

    def _folder(
        self, entry: os.DirEntry[str], path: Path, root: Path, visited: list[Path], above: tuple[Path, ...]
    ) -> Iterator[Path]:
        if not self.recursive:
            return
        if entry.is_symlink() and not self.follow_links:
            self.on_skip(str(path), "a link to a folder")
            return
        real = path.resolve()
        if real == self.avoid or real in above:  # the outputs' folder, or a link round to a folder that we are in
            return
        try:
            yield from self._below(path, root, visited, (*above, real))
        except OSError as error:
            self.on_closed(str(path), error.strerror or str(error))

    def _wanted(self, path: Path, root: Path, stems: set[str]) -> bool:
        if not self._included(path.relative_to(root)):
            return False
        if self._named_as_own(path, stems):
            self.on_skip(str(path), OWN_OUTPUT)
            return False
        leads_out = path.is_symlink() and not path.resolve().is_relative_to(root.resolve())
        if leads_out and not self.follow_links and path.exists():
            self.on_skip(str(path), "a link out of the folder")
            return False
        return True

    def _named_as_own(self, path: PurePath, stems: set[str]) -> bool:
        """Whether the name is an output's, and the input that it would belong to lies beside it."""
        found = _OWN_SUFFIX.search(path.stem)
        endings = [found.group(0)] if found else []
        if self.suffix and path.stem.endswith(self.suffix):
            endings.append(self.suffix)
        return any(path.stem.removesuffix(ending) in stems for ending in endings)

    def _included(self, relative: PurePath) -> bool:
        return not self.include or any(glob_matches(glob, relative) for glob in self.include)

    def _excluded(self, relative: PurePath) -> bool:
        return any(glob_matches(glob, relative) for glob in self.exclude)


def unreachable(path: Path) -> ImageError | None:
    """Why there is nothing to read at `path`; devices, which never end, are nothing to read."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return ImageError(f"{path}: no such file")
    except OSError as error:
        return ImageError(f"{path}: {error.strerror}")
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        return ImageError(f"{path}: a device or socket, and no file", "give - for the standard input")
    return None


def is_picture(name: str, readable: Iterable[str]) -> bool:
    """Whether the file name ends as a picture's does."""
    return PurePosixPath(name).suffix.lower() in readable


def sort_naturally(paths: Iterable[Path], root: Path) -> list[Path]:
    """`paths` (below `root`) as people count, whatever order the file system gave."""
    from natsort import natsorted, ns

    return natsorted(sorted(paths), key=lambda path: str(path.relative_to(root)), alg=ns.PATH | ns.IGNORECASE)


def glob_matches(pattern: str, relative: PurePath) -> bool:
    """Whether the glob matches a path below the folder, as .gitignore means it.

    Without a slash it is matched with the last name, else with the whole path; `*` and `?` stop at a slash, `**` not.
    """
    whole = "/" in pattern.rstrip("/")
    subject = relative.as_posix() if whole else relative.name
    return _compiled(pattern).fullmatch(subject) is not None


@lru_cache
def _compiled(glob: str) -> re.Pattern[str]:
    try:
        return re.compile(_translated(glob.strip("/")), re.DOTALL)
    except re.error as error:
        raise UsageError(
            f"the glob {glob!r} is none: {error.msg}", "a [ that is meant itself is written [[]"
        ) from error


def _translated(pattern: str) -> str:
    translated = ""
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern, re.DOTALL):
        if token == "**/":
            translated += "(?:.*/)?"
        elif token == "**":
            translated += ".*"
        elif token == "*":
            translated += "[^/]*"
        elif token == "?":
            translated += "[^/]"
        elif len(token) > 1:
            members = token[1:-1].replace("\\", "\\\\").replace("[", "\\[")
            translated += f"(?!/)[{'^' + members[1:] if members.startswith('!') else members}]"
        else:
            translated += re.escape(token)
    return translated
