"""Redirects are never followed to files, from https to http, or from the internet into a private network."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_server import serving

from hasn_cli import weights
from hasn_cli.errors import DownloadError, WeightsError
from hasn_cli.weights import addresses, hub
from hasn_cli.weights.addresses import why_not_to_follow

CONTENT = bytes(range(256)) * 40
ETAG = hashlib.sha256(CONTENT).hexdigest()


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes = b"") -> Iterator[tuple[str, list[str]]]:
    """A server on loopback that gives every request the same answer. Yields its address and the requested paths."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def outside(monkeypatch) -> None:
    """127.0.0.1 counts as a server on the internet, and every other host as one inside a private network."""
    monkeypatch.setattr(addresses, "is_private", lambda host: host != "127.0.0.1")


@pytest.fixture
def hub_at(monkeypatch, tmp_path):
    """A function that makes the hub's client use a server as the hub."""
    from huggingface_hub import close_session, constants

    def use(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield use
    close_session()


@pytest.fixture
def released_from(monkeypatch, tmp_path):
    """A function that downloads the released checkpoint, replaced by `CONTENT`, from an address."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(weights, "RELEASED_SHA256", ETAG)
    monkeypatch.setattr(weights, "RELEASED_SIZE", len(CONTENT))

    def fetch(url: str) -> Path:
        monkeypatch.setenv("HASN_RELEASED_URL", url)
        return weights.resolve("released", 4).path

    return fetch


def kept(folder: Path) -> list[Path]:
    """The files that are not empty, without the hub client's own records."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    return [path for path in found if "refs" not in path.parts and path.name != "CACHEDIR.TAG"]


# the rule


@pytest.mark.parametrize(
    ("origin", "target", "reason"),
    [
        ("https://1.1.1.1/a", "file:///etc/passwd", "leads to a file: address"),
        ("https://1.1.1.1/a", "ftp://1.1.1.1/a", "leads to a ftp: address"),
        ("https://1.1.1.1/a", "http://1.1.1.1/a", "from https to http"),
        ("https://1.1.1.1/a", "https://127.0.0.1/a", "inside a private network"),
        ("https://1.1.1.1/a", "https://169.254.169.254/latest", "inside a private network"),
        ("https://1.1.1.1/a", "https://[::1]/a", "inside a private network"),
        ("https://1.1.1.1/a", "https://[::ffff:10.0.0.1]/a", "inside a private network"),
        ("https://1.1.1.1/a", "https://192.168.1.1/a", "inside a private network"),
        ("https://1.1.1.1/a", "https://2130706433/a", "inside a private network"),  # 127.0.0.1 as one number
        ("https://1.1.1.1/a", "https://localhost/a", "inside a private network"),
        ("https://1.1.1.1/a", "https:///a", "names no server"),
        ("https://1.1.1.1/a", "https://8.8.8.8/a", None),
        ("http://1.1.1.1/a", "https://8.8.8.8/a", None),
        ("http://10.0.0.1/a", "http://10.0.0.2/a", None),  # a mirror in the same network
        ("http://127.0.0.1:80/a", "http://localhost:81/a", None),
    ],
)
def test_which_redirects_are_followed(origin: str, target: str, reason: str | None):
    found = why_not_to_follow(origin, target)
    assert found is None if reason is None else found is not None and reason in found


# the released checkpoint


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:,a", "http://localhost:1/secret"])
def test_a_mirror_of_the_released_checkpoint_cannot_redirect_anywhere(outside, released_from, tmp_path, target: str):
    with answering(302, {"Location": target}) as (url, asked), pytest.raises(DownloadError) as caught:
        released_from(url)
    assert "refused" in caught.value.message or "not allowed" in caught.value.message or "302" in caught.value.message
    assert len(asked) == 1
    assert kept(tmp_path) == []


def test_a_mirror_of_the_released_checkpoint_may_redirect_to_another_server(released_from):
    with answering(200, {}, CONTENT) as (mirror, _), answering(302, {"Location": f"{mirror}/w.pth"}) as (url, _):
        assert released_from(url).read_bytes() == CONTENT


def test_the_released_checkpoint_may_be_a_local_file_and_is_checked_too(released_from, tmp_path):
    (tmp_path / "w.pth").write_bytes(CONTENT)
    assert released_from((tmp_path / "w.pth").as_uri()).read_bytes() == CONTENT


def test_a_file_with_other_content_is_refused_as_the_released_checkpoint(released_from, tmp_path):
    (tmp_path / "w.pth").write_bytes(CONTENT[::-1])
    with pytest.raises(DownloadError, match="is not the file it should be"):
        released_from((tmp_path / "w.pth").as_uri())
    with pytest.raises(DownloadError, match="is longer than"):
        released_from("file:///dev/zero")


@pytest.mark.parametrize(
    ("address", "message"), [("http://{host}/w.pth?token=secret", "404"), ("http://me:secret@{host}/w.pth", "a user")]
)
def test_secrets_in_an_address_are_not_shown(released_from, address: str, message: str):
    with answering(404, {}) as (url, _), pytest.raises(DownloadError) as caught:
        released_from(address.format(host=url.removeprefix("http://")))
    assert message in caught.value.message
    assert "secret" not in caught.value.message


# the hub


def answer_of_a_hub(**headers: str) -> dict[str, str]:
    return {"X-Repo-Commit": "a" * 40, "ETag": f'"{ETAG}"', **{k.replace("_", "-"): v for k, v in headers.items()}}


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "http://localhost:1/secret"])
def test_a_hub_cannot_redirect_anywhere(outside, hub_at, tmp_path, target: str):
    with answering(302, answer_of_a_hub(Location=target)) as (url, asked):
        hub_at(url)
        with pytest.raises(WeightsError) as caught:
            weights.resolve("hf://o/r/w.safetensors", 2)
    assert "which is refused: it leads to" in caught.value.message
    assert [path for path in asked if "secret" in path or "passwd" in path] == []
    assert kept(tmp_path) == []


def test_a_hub_may_redirect_to_its_store(hub_at):
    with answering(200, {}, CONTENT) as (store, _), answering(302, answer_of_a_hub(Location=f"{store}/w")) as (url, _):
        hub_at(url)
        assert weights.resolve("hf://o/r/w.safetensors", 2).path.read_bytes() == CONTENT


@pytest.mark.parametrize("header", ["X-Repo-Commit", "ETag"])
def test_names_from_a_hub_cannot_lead_out_of_the_cache(hub_at, tmp_path, header: str):
    (tmp_path / "hub").mkdir()
    headers = {**answer_of_a_hub(), header: "../../../../escaped"}
    with answering(200, headers, CONTENT) as (url, _):
        hub_at(url)
        with pytest.raises(DownloadError, match=f"answers with an invalid {header}"):
            weights.resolve("hf://o/r/w.safetensors", 2)
    assert kept(tmp_path) == []


def test_a_file_too_large_for_weights_is_not_downloaded(hub_at, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "MOST_BYTES", len(CONTENT) - 1)
    with answering(200, answer_of_a_hub(), CONTENT) as (url, _):
        hub_at(url)
        with pytest.raises(DownloadError, match=r"w\.safetensors is larger than"):
            weights.resolve("hf://o/r/w.safetensors", 2)
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "hf://o/r/../../w.pth",
        "hf://o/r//etc/passwd",
        "hf://../r",
        "hf://o/..",
        "hf://o/r@../w.pth",
        "hf://o/r@..%2F..%2Fmain",
        "hf://o/r@%2Fetc/w.pth",
        "hf://o/r/a\\..\\w.pth",
        "hf://o/r/a%0Ab\n.pth",
    ],
)
def test_names_that_lead_out_of_a_repository_are_no_hub_ids(monkeypatch, name: str):
    monkeypatch.setattr("hasn_cli.weights.hub.fetch", lambda *_: pytest.fail("asked"))
    with pytest.raises(WeightsError, match="no weights"):
        weights.resolve(name, 2)


def test_other_users_of_the_hubs_client_are_not_restricted(outside, hub_at):
    import huggingface_hub

    with answering(200, {}, CONTENT) as (store, _), serving() as server:
        hub_at(server.url)
        with pytest.raises(WeightsError):
            weights.resolve("o/absent", 2)  # installs the check
        response = huggingface_hub.get_session().get(store.replace("127.0.0.1", "localhost"))
    assert response.content == CONTENT
