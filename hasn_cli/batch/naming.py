"""Names the outputs, and checks that no two of them are the same file and that none overwrites an input."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from hasn_cli.batch import remote
from hasn_cli.batch.location import Place, is_folder, is_video, join, lies_below, same_folder
from hasn_cli.batch.walk import sniffed
from hasn_cli.errors import HasnError, UsageError
from hasn_cli.video import containers

if TYPE_CHECKING:
    from hasn_cli.batch.jobs import Job
    from hasn_cli.enlarge import Size


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


class Naming:
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
        self._many = len(self._entries) > 1 or any(is_folder(entry) for entry in self._entries)
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
        folders = (entry for entry in self._entries if is_folder(entry))
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
            below = join(folder, relative.parent)
            beside = same_folder(below, source)
        suffix = self.suffix if self.suffix is not None else self.default_suffix if beside else ""
        target = join(below, self._name(relative.name, source, suffix))
        if folder is not None and not lies_below(target, folder):
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


def without_repeats(jobs: Iterable[Job]) -> list[Job]:
    """Remove jobs that repeat an earlier one, for example if both a folder and a file in it are named."""
    first: dict[object, Job] = {}
    for job in jobs:
        first.setdefault((_identity(job.source), _key(job.target)), job)
    return list(first.values())


def refuse_clashes(jobs: Sequence[Job]) -> None:
    """Check that all outputs are different files, and that none is an input.

    A link at an output's name is replaced and not followed, so the file that it points to is safe. If that file is an
    input, a single picture is refused, since this is hardly intended. In a batch, it counts as an output that exists.

    Raises:
        UsageError: two outputs are the same file, or an output is an input.
    """
    writers: dict[object, Job] = {}
    read = {_identity(job.source): job for job in jobs if job.source != "-" and job.problem is None}
    for job in jobs:
        if job.problem is not None or job.target == "-":
            continue
        other = writers.setdefault(_key(job.target), job)
        if other is not job:
            message = f"{other.name} and {job.name} would both be written to {job.target}"
            raise UsageError(message, "use another output folder or another format")
        reader = read.get(_identity(job.target))
        if reader is not None and (len(jobs) == 1 or _key(reader.source) == _key(job.target)):
            message = f"the output of {job.name} would overwrite {reader.name}, which is an input"
            raise UsageError(message, "choose another output, give --suffix, or name the folder instead of its files")


def _key(place: Place) -> object:
    """A value that is equal for two names of the same file, even if it does not exist.

    A link counts as a file of its own, because writing replaces it.
    """
    if not isinstance(place, Path):
        return remote.filesystem(place) if remote.is_url(place) else place
    key = os.path.join(os.path.realpath(place.parent), place.name)  # noqa: PTH118 (`place` may end in "..")
    if sys.platform in ("darwin", "win32"):  # where a.png and A.png are the same file, and so are both forms of é
        key = unicodedata.normalize("NFC", key).casefold()
    return key


def _identity(place: Place) -> object:
    """A value that is equal for the same file, whatever links or spellings lead to it. If there is none: its key."""
    try:
        if not isinstance(place, Path):
            return _key(place)
        found = place.stat()
    except HasnError:  # the store cannot be reached, which is reported when the job runs
        return place
    except OSError:
        return _key(place)
    return found.st_dev, found.st_ino
