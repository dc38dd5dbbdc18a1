"""Find, download, check and publish weights in repositories on the Hugging Face Hub.

All traffic goes through `huggingface_hub`, so its cache, tokens, proxies, mirrors (`HF_ENDPOINT`) and offline mode
(`HF_HUB_OFFLINE`) apply. Its errors become `DownloadError`s that say what to do.

A repository, or a folder with the same layout, contains a `config.json` with either `files` (scale → file name) or
`scale` (then the file is `model.safetensors`, as `push_to_hub` writes it), or files named `hasn_x2.safetensors` ….
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from hasn_cli.errors import DownloadError, WeightsError
from hasn_cli.weights.documents import read_json_object
from hasn_cli.weights.guard import watched

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

Progress = Callable[[str, int, int | None], None]
"""Called with the name of the download, the bytes received so far, and the bytes in all (None: not known yet)."""

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
SCHEME = "hf://"
_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(/(?P<filename>.+))?")
MOST_BYTES = 256 << 20  # in a file to download; the same limit as in `checkpoint`
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubId:
    """`OWNER/REPO[@REVISION]` or `hf://OWNER/REPO[@REVISION][/FILE]`."""

    repo: str
    revision: str | None = None
    filename: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """Read either form; None if `text` is neither."""
        match = _ID.fullmatch(text.removeprefix(SCHEME))
        if match is None or (match["filename"] and not text.startswith(SCHEME)):
            return None
        revision = unquote(match["revision"]) if match["revision"] else None
        if not all(part is None or stays_below(part) for part in (match["repo"], revision, match["filename"])):
            return None
        return cls(match["repo"], revision, match["filename"])

    def __str__(self) -> str:
        name = f"{self.repo}@{self.revision}" if self.revision else self.repo
        return f"{SCHEME}{name}/{self.filename}" if self.filename else name


@dataclass(frozen=True)
class Access:
    """Options for downloads. The defaults are those of the hub's client."""

    progress: Progress | None = None
    local_only: bool = False
    force: bool = False
    cache_dir: str | Path | None = None
    token: str | bool | None = None


def fetch(source: HubId, scale: int, access: Access = Access()) -> Path:
    """The cached file of `source` for `scale`. It is downloaded if it is missing or its revision has changed.

    If the revision has not changed, this costs one HEAD request, or none if the hub cannot be reached.

    Raises:
        DownloadError: the repository, revision or file does not exist; there is no access or no connection; or the
            file was damaged on the way.
        WeightsError: the repository has no weights for this scale.
    """
    if source.filename:
        return _get(source, source.filename, access)
    pinned, config, out_of_reach = source, None, None
    try:
        config_path = _get(source, CONFIG, access)
    except _NoSuchFileError:
        pass
    except _NotCachedError as error:  # the weights may still be cached, from a repository without a config
        out_of_reach, access = error, replace(access, local_only=True, force=False)
    else:
        config = read_config(config_path, str(source))
        pinned = HubId(source.repo, config_path.parent.name)  # snapshots/COMMIT/config.json: take both from one commit
    names = candidates(config, scale, str(source))
    for name in names:
        try:
            return _get(pinned, name, access)
        except _NoSuchFileError:
            continue
        except _NotCachedError as error:
            out_of_reach = out_of_reach or error
    raise out_of_reach or WeightsError(
        f"{source} has no weights for x{scale} (looked for {', '.join(names)})",
        f"name the file: {SCHEME}{source}/FILE",
    )


def read_config(path: Path, origin: str) -> dict[str, Any]:
    """Parse a repository's `config.json`.

    Raises:
        WeightsError: it is not a JSON object.
    """
    return read_json_object(path, f"{CONFIG} of {origin}")


def candidates(config: Mapping[str, Any] | None, scale: int, origin: str) -> list[str]:
    """The file names to try for `scale`, best first, given a repository's config (None: it has none).

    Raises:
        WeightsError: the config does not list `scale`, or names a file outside of the repository.
    """
    config = config or {}
    files = config.get("files")
    if isinstance(files, Mapping):
        name = files.get(str(scale))
        if not isinstance(name, str):
            raise WeightsError(f"{origin} has no weights for x{scale}", f"it has x{', x'.join(map(str, files))}")
        if not stays_below(name):
            raise WeightsError(f"{CONFIG} of {origin} names a file outside of it: {name!r}")
        return [name]
    named = f"hasn_x{scale}.safetensors"
    if config.get("scale") == scale:
        return [SINGLE_FILE, named]
    if "scale" in config:
        return [named]
    return [named, SINGLE_FILE]


def stays_below(name: str) -> bool:
    """Whether a name from a stranger stays below the folder that it is appended to, on any system."""
    path = PurePosixPath(name)
    plain = name.isprintable() and not path.is_absolute() and not {"\\", ":"} & set(name)
    return plain and path.parts != () and ".." not in path.parts


def config_bytes(files: Mapping[int, str], num_features: int) -> bytes:
    """A `config.json` for `candidates` and `HASN.from_pretrained`. The latter uses the largest scale by default."""
    config = {
        "model_type": "hasn",
        "scale": max(files),
        "num_features": num_features,
        "files": {str(scale): name for scale, name in sorted(files.items())},
    }
    return json.dumps(config, indent=2).encode() + b"\n"


def push(repo: str, contents: Mapping[str, Path | bytes], *, private: bool | None, message: str) -> str:
    """Create the repository if it does not exist, and commit `contents` (name → file or bytes) to it.

    Returns:
        The commit's web address.

    Raises:
        DownloadError: there is no token, no permission to write or no connection, or the hub refused.
    """
    with _explained(HubId(repo)):
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi(library_name="hasn")
        repo_id = api.create_repo(repo, private=private, exist_ok=True).repo_id
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        with _no_bars():
            return str(api.create_commit(repo_id, operations, commit_message=message).commit_url)


def stated_sha256(path: Path) -> str | None:
    """The SHA-256 of a cached file, as stated by the hub. The client stores large files under it, with a link to them.

    None for small files, which are named by a git hash, and on file systems without links.
    """
    name = path.readlink().name if path.is_symlink() else ""
    return name if _SHA256.fullmatch(name) else None


class _NoSuchFileError(DownloadError):
    """The repository exists, but the file does not."""


class _NotCachedError(DownloadError):
    """The file is not in the cache, and the hub was not asked or could not be reached."""


def _get(source: HubId, filename: str, access: Access) -> Path:
    with _explained(source, filename):
        from huggingface_hub import hf_hub_download

        if access.progress is not None:
            access.progress(f"{source.repo}/{filename}", 0, None)  # the first byte may take a while
        path = hf_hub_download(
            source.repo,
            filename,
            revision=source.revision,
            cache_dir=access.cache_dir,
            token=access.token,
            force_download=access.force,
            local_files_only=access.local_only,
            library_name="hasn",
            tqdm_class=_bar_class(f"{source.repo}/{filename}", access.progress),
        )
    _check_digest(Path(path), f"{source.repo}/{filename}")
    return Path(path)


def _check_digest(path: Path, label: str) -> None:
    """Compare a cached file with the SHA-256 that the hub states. The client compares only sizes."""
    expected = stated_sha256(path)
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        path.resolve().unlink()
        path.unlink()
        raise DownloadError(
            f"{label} was damaged on the way: its SHA-256 is {found}, not {expected}",
            "it was removed from the cache; try again",
        )


def _bar_class(label: str, progress: Progress | None) -> type:
    """A replacement for the client's progress bar, which draws nothing and calls `progress`."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    leader: list[object] = []  # the client may open a second bar for the same file; only the first one counts

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *_: object, total: float | None = None, initial: float = 0, **__: object) -> None:
            super().__init__(disable=True)
            self.n, self.total = initial, total
            leader.append(self)
            _check_length(label, max(initial, total or 0))

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            _check_length(label, self.n)
            if progress is not None and leader[0] is self:
                progress(label, int(self.n), int(self.total) if self.total else None)

    return Bar


def _check_length(label: str, length: float) -> None:
    """Refuse files that are too large for weights, before they fill the disk."""
    if length > MOST_BYTES:
        raise DownloadError(
            f"{label} is larger than {MOST_BYTES / 1e6:.0f} MB; HASN's weights take 2", "nothing was kept"
        )


@contextmanager
def _no_bars() -> Iterator[None]:
    """Stop the client from drawing a bar for each upload, which it does even if stderr is not a terminal."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _explained(source: HubId, filename: str = "") -> Iterator[None]:
    """Turn the client's exceptions into clear errors, and keep its log messages off stderr."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging as _  # noqa: F401  (importing it sets the level that is replaced below)

    client_log = logging.getLogger("huggingface_hub")
    level = client_log.level
    client_log.setLevel(logging.ERROR)
    transport_error: type[Exception] = HfHubHTTPError.__mro__[1]  # the error class of its HTTP library
    try:
        with watched():
            yield
    except (OSError, ValueError, transport_error) as error:
        raise _explain(error, source, filename) from error
    finally:
        client_log.setLevel(level)


def _explain(error: Exception, source: HubId, filename: str) -> DownloadError:
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    host = constants.ENDPOINT
    if isinstance(error, hub.GatedRepoError):
        return DownloadError(f"{source.repo} is gated", f"ask for access on {host}/{source.repo}, then: hf auth login")
    if isinstance(error, hub.RepositoryNotFoundError):
        return DownloadError(
            f"there is no model {source.repo} on {host}, or it is private",
            "check the spelling; for a private one: hf auth login, or HF_TOKEN",
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return DownloadError(f"{source.repo} has no revision '{source.revision}'", "give a branch, a tag or a commit")
    if isinstance(error, hub.RemoteEntryNotFoundError):
        return _NoSuchFileError(f"{source} has no file {filename}", f"see {host}/{source.repo}/tree/main")
    if isinstance(error, hub.LocalTokenNotFoundError):
        return DownloadError(f"writing to {source.repo} needs a token", "hf auth login, or set HF_TOKEN")
    if isinstance(error, hub.LocalEntryNotFoundError):
        return _not_here(error, source, host)
    if isinstance(error, hub.HfHubHTTPError):
        return _refused(error, source, host)
    if isinstance(error, OSError) and error.errno is not None:  # from this machine; the client's errors have no number
        return DownloadError(f"cannot store {source} in the cache: {error}", "set HF_HOME to use another folder")
    if isinstance(error, ValueError):  # from the client, for a malformed name
        return DownloadError(f"'{source}' is not valid: {_first_line(error)}", "the form is OWNER/REPO[@REVISION]")
    return DownloadError(
        f"the connection to {host} for {source} failed: {_first_line(error)}", "check the connection and try again"
    )


def _not_here(error: Exception, source: HubId, host: str) -> DownloadError:
    """The error for a file that is not in the cache and was not downloaded, with the reason."""
    from huggingface_hub import errors as hub

    cause = error.__cause__
    if isinstance(cause, hub.HfHubHTTPError):
        return _refused(cause, source, host)
    if cause is None:  # only the cache was asked
        return _NotCachedError(f"{source} is not on this machine", f"download it with: hasn weights pull {source}")
    if isinstance(cause, hub.OfflineModeIsEnabled):
        return _NotCachedError(
            f"{source} is not on this machine, and HF_HUB_OFFLINE forbids downloads",
            f"without HF_HUB_OFFLINE: hasn weights pull {source}",
        )
    return _NotCachedError(
        f"{source} is not on this machine, and {host} cannot be reached ({_first_line(cause)})",
        "check the connection, or select a mirror with HF_ENDPOINT",
    )


def _refused(error: HfHubHTTPError, source: HubId, host: str) -> DownloadError:
    status = error.response.status_code
    if status == 429:
        return DownloadError(f"{host} asks to slow down (429) for {source}", "wait a while; HF_TOKEN raises the limit")
    if status in (401, 403):
        return DownloadError(
            f"{host} refuses access to {source} ({status})", "log in with hf auth login, or use another token"
        )
    if status >= 500:
        return DownloadError(f"{host} reports a server error ({status}) for {source}", "try again later")
    return DownloadError(f"{host} answers {status} for {source}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
