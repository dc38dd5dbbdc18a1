"""Find the pictures in a folder, in order.

Left out are hidden files, files that are not named like a picture, outputs of this program, links that lead out of the
folder, and files that `--include` and `--exclude` rule out.
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
"""Called with each file or folder that is left out, and the reason."""

OWN_OUTPUT = "an output of hasn"
SUBFOLDER = "a subfolder, without -r"

# the suffixes that naming.size_suffix gives
_OWN_SUFFIX = re.compile(r"(_x\d+(\.\d+)?|_\d+x\d+|_[wh]\d+|_\d+(\.\d+)?mp)$")


@dataclass(frozen=True)
class Walk:
    """How to search folders.

    Attributes:
        readable: the file suffixes of pictures, in lower case and with the dot.
        recursive: search subfolders, too.
        include: if there are any globs, a file must match one of them.
        exclude: files and folders that match one of these globs are left out.
        follow_links: also follow links out of the folder, and links to folders.
        suffix: the suffix of our own outputs, besides the default suffixes.
        avoid: the output folder, resolved, or its URL. It is not searched.
        on_skip: called with what is left out for a reason that may surprise the user.
        on_closed: called with folders that cannot be listed, and with links that lead nowhere.

    Raises:
        UsageError: a glob is invalid.
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
            OSError: `root` itself cannot be listed. Subfolders that cannot be listed are passed to `on_closed`.
        """
        visited: list[Path] = []
        found = set(self._below(root, visited))
        below: dict[Path, list[Path]] = {folder: [] for folder in visited if os.path.lexists(folder / journal.NAME)}
        for path in found if below else ():
            for parent in path.parents:
                if parent in below:
                    below[parent].append(path)
        for folder, paths in below.items():
            found -= self._recorded_outputs(folder, found.intersection(paths))
        return sort_naturally(found, root)

    def _recorded_outputs(self, folder: Path, found: Collection[Path]) -> frozenset[Path]:
        """Those of the files found that the journal in `folder` records as outputs."""
        try:
            own = journal.outputs_recorded(folder, found)
        except OutputError as error:  # nothing is written to this journal, so the run can do without it
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
        own = frozenset[str]().union(*map(self._recorded_urls, (remote.join(url, folder) for folder in stems)))
        outputs = remote.relative(self.avoid, url) if isinstance(self.avoid, str) else None
        return [
            name
            for name in pictures
            if not (outputs and name.is_relative_to(outputs))
            and not any(part.startswith(".") for part in name.parts)
            and not any(self._excluded(part) for part in (name, *name.parents))
            and self._wanted_at(url, name, own, stems[name.parent])
        ]

    def _recorded_urls(self, url: str) -> frozenset[str]:
        try:
            return journal.urls_recorded(url)
        except OutputError as error:
            self.on_skip(*error.message.split(": ", 1))
            return frozenset()

    def _wanted_at(self, url: str, name: PurePosixPath, own: frozenset[str], stems: set[str]) -> bool:
        place = remote.join(url, name)
        if not self._included(name):
            return False
        if redacted(place) in own or self.named_as_own(name, stems):
            self.on_skip(place, OWN_OUTPUT)
            return False
        return True

    def _below(self, root: Path, visited: list[Path]) -> Iterator[Path]:
        """The pictures in `root` and, if wanted, below it; a loop, since folders may lie deeper than Python's stack."""
        true = root.resolve()
        waiting = [(root, true, frozenset({true}))]
        while waiting:
            folder, true, above = waiting.pop()
            visited.append(folder)
            try:
                entries = list(os.scandir(folder))
            except OSError as error:
                if folder is root:
                    raise
                self.on_closed(str(folder), error.strerror or str(error))
                continue
            stems = {Path(entry.name).stem for entry in entries if is_picture(entry.name, self.readable)}
            for entry in entries:
                path = folder / entry.name
                if entry.name.startswith(".") or self._excluded(path.relative_to(root)):
                    continue
                try:
                    if not entry.is_dir():
                        if self._is_wanted_picture(entry, path, root, stems):
                            yield path
                    elif self._to_enter(entry, path):
                        real = path.resolve() if entry.is_symlink() else true / entry.name
                        # not into the outputs' folder, nor by a link into a folder that we are in
                        if real != self.avoid and real not in above:
                            waiting.append((path, real, above | {real}))
                except OSError as error:  # a link that leads round to itself, or to where nobody may look
                    meant = is_picture(entry.name, self.readable) and self._included(path.relative_to(root))
                    (self.on_closed if meant else self.on_skip)(str(path), error.strerror or str(error))

    def _is_wanted_picture(self, entry: os.DirEntry[str], path: Path, root: Path, stems: set[str]) -> bool:
        is_file = entry.is_file()
        if not is_picture(entry.name, self.readable) or not self._wanted(path, root, stems):
            return False
        if not is_file and entry.is_symlink() and not path.exists():
            self.on_closed(str(path), f"a link to {path.readlink()}, which does not exist")
        elif not is_file:
            self.on_skip(str(path), "a pipe, socket or device")
        return is_file

    def _to_enter(self, entry: os.DirEntry[str], path: Path) -> bool:
        if not self.recursive:
            if path.resolve() != self.avoid:
                self.on_skip(str(path), SUBFOLDER)
            return False
        if entry.is_symlink() and not self.follow_links:
            self.on_skip(str(path), "a link to a folder")
            return False
        return True

    def _wanted(self, path: Path, root: Path, stems: set[str]) -> bool:
        if not self._included(path.relative_to(root)):
            return False
        if self.named_as_own(path, stems):
            self.on_skip(str(path), OWN_OUTPUT)
            return False
        leads_out = path.is_symlink() and not path.resolve().is_relative_to(root.resolve())
        if leads_out and not self.follow_links and path.exists():
            self.on_skip(str(path), "a link out of the folder")
            return False
        return True

    def named_as_own(self, path: PurePath, stems: set[str]) -> bool:
        """Whether `path` is named like an output, and one of `stems` is the input that it belongs to."""
        found = _OWN_SUFFIX.search(path.stem)
        endings = [found.group(0)] if found else []
        if self.suffix and path.stem.endswith(self.suffix):
            endings.append(self.suffix)
        return any(path.stem.removesuffix(ending) in stems for ending in endings)

    def _included(self, relative: PurePath) -> bool:
        return not self.include or any(glob_matches(glob, relative) for glob in self.include)

    def _excluded(self, relative: PurePath) -> bool:
        return any(glob_matches(glob, relative) for glob in self.exclude)


def without_own_outputs(named: Sequence[str], walk: Walk) -> list[str]:
    """Leave out files that are outputs of other files in `named`, so that a command with `*.jpg` can be repeated.

    A file whose input is not in `named` is kept.
    """
    stems: dict[PurePath, set[str]] = {}
    for path in map(PurePath, named):
        stems.setdefault(path.parent, set()).add(path.stem)
    kept = []
    for name in named:
        path = PurePath(name)
        if walk.named_as_own(path, stems[path.parent] - {path.stem}) and Path(name).is_file():
            walk.on_skip(name, OWN_OUTPUT)
        else:
            kept.append(name)
    return kept


def unreachable(path: Path, hint: str | None = None) -> ImageError | None:
    """The reason why `path` cannot be read, or None. Devices are not read, since they may never end.

    `hint` is used if `path` does not exist.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return ImageError(f"{path}: no such file", hint)
    except OSError as error:
        return ImageError(f"{path}: {error.strerror}")
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        return ImageError(f"{path}: a device or socket, not a file", "give - to read the standard input")
    return None


def sniffed(source: Path | str) -> str | None:
    """The format of a local file, by its first bytes. None if it is unknown or cannot be read."""
    from hasn_cli.images.formats import HEAD, sniff

    if not isinstance(source, Path) or not source.is_file():
        return None
    try:
        with source.open("rb") as stream:
            return sniff(stream.read(HEAD))
    except OSError:
        return None


def is_picture(name: str, readable: Iterable[str]) -> bool:
    """Whether the file name has a picture's suffix."""
    return PurePosixPath(name).suffix.lower() in readable


def sort_naturally(paths: Iterable[Path], root: Path) -> list[Path]:
    """Sort `paths` (below `root`) in natural order: a2 before a10."""
    from natsort import natsorted, ns

    return natsorted(sorted(paths), key=lambda path: str(path.relative_to(root)), alg=ns.PATH | ns.IGNORECASE)


def glob_matches(pattern: str, relative: PurePath) -> bool:
    """Whether the glob matches a path below the folder, by the rules of .gitignore.

    A glob without a slash is matched with the file name, others with the whole path. `**` matches slashes; `*` and `?`
    do not.
    """
    whole = "/" in pattern.rstrip("/")
    subject = relative.as_posix() if whole else relative.name
    return _compiled(pattern).fullmatch(subject) is not None


@lru_cache
def _compiled(glob: str) -> re.Pattern[str]:
    try:
        return re.compile(_translated(glob.strip("/")), re.DOTALL)
    except re.error as error:
        raise UsageError(f"the glob {glob!r} is invalid: {error.msg}", "to match the character [, write [[]") from error


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
