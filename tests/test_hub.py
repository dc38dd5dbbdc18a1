"""`-w OWNER/REPO` and `-w released` with a server on loopback and the real clients."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hub_server import Hub, serving

from hasn_cli import weights
from hasn_cli.errors import DownloadError, WeightsError
from hasn_cli.weights import download as download_module
from hasn_cli.weights import hub as hub_module

REPO = "someone/hasn"
SMALL = bytes(range(256)) * 1200  # 300 kB: several chunks


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on loopback, which the client uses with an empty cache and no token."""
    from huggingface_hub import close_session, constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HASN_RELEASED_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield server
        close_session()


@pytest.fixture
def x4() -> bytes:
    return weights.bundled_path(4).read_bytes()


def test_the_first_use_downloads_and_the_second_only_asks_for_changes(hub: Hub, x4: bytes):
    hub.add(REPO, {"config.json": b'{"scale": 4}', "model.safetensors": x4})
    assert weights.resolve(REPO, 4).path.read_bytes() == x4
    hub.log.clear()
    assert weights.load_network(REPO, 4).scale == 4
    assert hub.log == [f"HEAD {REPO}/resolve/main/config.json"]


def test_cached_weights_work_without_the_hub(hub: Hub, monkeypatch, x4: bytes):
    from huggingface_hub import constants

    hub.add(REPO, {"config.json": b'{"scale": 4}', "model.safetensors": x4})
    first = weights.resolve(REPO, 4).path
    hub.always = 503
    assert weights.resolve(REPO, 4).path == first
    nobody = "http://127.0.0.1:9"  # discard port: refused
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody + "/{repo_id}/resolve/{revision}/{filename}")
    assert weights.resolve(REPO, 4).path == first
    assert weights.resolve(REPO, 4, download=False).path == first


def test_cached_weights_of_a_repository_without_config_work_without_the_hub(hub: Hub, monkeypatch):
    from huggingface_hub import constants

    hub.add(REPO, {"hasn_x2.safetensors": SMALL})
    first = weights.resolve(REPO, 2).path
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody + "/{repo_id}/resolve/{revision}/{filename}")
    assert weights.resolve(REPO, 2).path == first


def test_an_unreachable_hub_is_waited_for_only_once(hub: Hub, monkeypatch):
    from huggingface_hub import constants

    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody + "/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(DownloadError, match=r"not on this machine, and http.* cannot be reached"):
        weights.resolve(REPO, 2)
    assert 0 < sum(pauses) < 30  # the client's timeout for one file


def test_a_moved_revision_is_followed_and_a_pinned_one_is_not(hub: Hub):
    old = hub.add(REPO, {"hasn_x2.safetensors": SMALL, "config.json": b"{}"})
    assert weights.resolve(REPO, 2).path.read_bytes() == SMALL
    hub.add(REPO, {"hasn_x2.safetensors": SMALL[::-1]})
    assert weights.resolve(REPO, 2).path.read_bytes() == SMALL[::-1]
    assert weights.resolve(f"{REPO}@{old}", 2).path.read_bytes() == SMALL


def test_a_cut_connection_is_resumed_where_it_broke(hub: Hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # the client's 10 MB would hold the whole file
    hub.add(REPO, {"hasn_x2.safetensors": SMALL})
    hub.cuts = [100_000]
    seen = []
    found = weights.resolve(REPO, 2, progress=lambda label, done, total: seen.append((label, done, total)))
    assert found.path.read_bytes() == SMALL
    assert [line.split()[-1] for line in hub.asked("GET", "hasn_x2")] == [
        f"{REPO}/resolve/main/hasn_x2.safetensors",
        "bytes=100000-",
    ]
    assert seen[-1] == (f"{REPO}/hasn_x2.safetensors", len(SMALL), len(SMALL))


def test_if_a_file_has_two_bars_the_first_counts():
    seen = []
    bar_class = hub_module._bar_class("file", lambda *event: seen.append(event))
    first, second = bar_class(total=10, initial=2), bar_class(total=4)
    second.update(3)
    first.update(5)
    assert seen == [("file", 7, 10)]


def test_content_that_does_not_match_its_hash_is_refused_and_not_kept(hub: Hub):
    hub.add(REPO, {"hasn_x2.safetensors": SMALL})
    hub.corrupt = True
    with pytest.raises(DownloadError, match="was damaged on the way: its SHA-256 is") as caught:
        weights.resolve(REPO, 2)
    assert hashlib.sha256(SMALL).hexdigest() in str(caught.value)
    hub.corrupt = False
    assert weights.resolve(REPO, 2).path.read_bytes() == SMALL


def test_the_file_for_the_scale_is_found_by_config_by_name_or_given(hub: Hub):
    listing = b'{"files": {"2": "a/two.safetensors", "3": "three.safetensors"}}'
    hub.add("o/listed", {"config.json": listing, "a/two.safetensors": b"2", "three.safetensors": b"3"})
    assert weights.resolve("o/listed", 2).path.read_bytes() == b"2"
    assert weights.resolve("hf://o/listed@main", 3).path.read_bytes() == b"3"
    assert weights.resolve("hf://o/listed/three.safetensors", 2).path.read_bytes() == b"3"
    hub.add("o/named", {"hasn_x3.safetensors": b"n3", "model.safetensors": b"any"})
    assert weights.resolve("o/named", 3).path.read_bytes() == b"n3"
    assert weights.resolve("o/named", 2).path.read_bytes() == b"any"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b'{"files": {"2": "two.safetensors"}}', "o/r has no weights for x4"),
        (b'{"scale": 2}', r"o/r has no weights for x4 \(looked for hasn_x4.safetensors\)"),
        (b"[1]", "config.json of o/r is not a JSON object"),
        (b"{", "config.json of o/r cannot be read"),
        (b'{"files": {"4": "../../etc/passwd"}}', "config.json of o/r names a file outside of it"),
    ],
)
def test_a_repository_without_weights_for_the_scale_says_so(hub: Hub, config: bytes, message: str):
    hub.add("o/r", {"config.json": config})
    with pytest.raises(WeightsError, match=message):
        weights.resolve("o/r", 4)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("o/absent", "there is no model o/absent on http", "hf auth login"),
        (f"{REPO}@nowhere", f"{REPO} has no revision 'nowhere'", "branch"),
        (f"hf://{REPO}/other.pth", "has no file other.pth", "/tree/main"),
        ("hf://o/--bad--.git", "is not valid", "OWNER/REPO"),
    ],
)
def test_a_missing_repository_or_file_is_named(hub: Hub, name: str, message: str, hint: str):
    hub.add(REPO, {"hasn_x2.safetensors": SMALL})
    with pytest.raises(DownloadError) as caught:
        weights.resolve(name, 2)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("status", "message"), [(401, "refuses access"), (403, "refuses access"), (429, "slow down"), (500, "server error")]
)
def test_a_permanent_error_is_reported_once(hub: Hub, status: int, message: str, caplog):
    hub.add(REPO, {"hasn_x2.safetensors": SMALL})
    hub.always = status
    with pytest.raises(DownloadError, match=message) as caught:
        weights.resolve(REPO, 2)
    assert str(status) in caught.value.message
    assert caught.value.hint
    assert caplog.records == []  # the client's own messages are hidden


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_temporary_error_is_retried(hub: Hub, status: int):
    hub.add(REPO, {"hasn_x2.safetensors": SMALL})
    hub.statuses = [status, status]
    assert weights.resolve(f"hf://{REPO}/hasn_x2.safetensors", 2).path.read_bytes() == SMALL


def test_a_private_repository_works_with_the_token_from_the_environment(hub: Hub, monkeypatch):
    hub.add(REPO, {"hasn_x2.safetensors": SMALL})
    hub.private.add(REPO)
    with pytest.raises(DownloadError, match="or it is private"):
        weights.resolve(REPO, 2)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert weights.resolve(REPO, 2).path.read_bytes() == SMALL


def test_offline_mode_uses_only_the_cache(hub: Hub, monkeypatch):
    from huggingface_hub import constants

    hub.add(REPO, {"hasn_x2.safetensors": SMALL, "config.json": b"{}"})
    first = weights.resolve(REPO, 2).path
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights.resolve(REPO, 2).path == first
    with pytest.raises(DownloadError, match="not on this machine, and HF_HUB_OFFLINE forbids") as caught:
        weights.resolve("o/other", 2)
    assert "hasn weights pull o/other" in (caught.value.hint or "")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE forbids"):
        weights.resolve("released", 4)
    assert hub.log == []


def test_a_cache_that_cannot_be_written_is_named(hub: Hub, monkeypatch, tmp_path):
    from huggingface_hub import constants

    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    hub.add(REPO, {"hasn_x2.safetensors": SMALL})
    with pytest.raises(DownloadError, match=r"cannot store someone/hasn in the cache: .*Not a directory") as caught:
        weights.resolve(REPO, 2)
    assert "HF_HOME" in (caught.value.hint or "")


@pytest.mark.filterwarnings("ignore:Use 'content")  # the client's own use of its HTTP library
def test_what_publish_uploads_is_what_the_hub_id_loads(hub: Hub, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    folder = weights.bundled_path(4).parent
    address = weights.publish("me/mine", folder, message="First weights")
    assert address == f"{hub.url}/me/mine/commit/{hub.repositories['me/mine'].head}"
    for scale in (2, 3, 4):
        found = weights.resolve("me/mine", scale)
        assert found.path.read_bytes() == weights.bundled_path(scale).read_bytes()
        assert weights.expected_sha256(found) == hashlib.sha256(found.path.read_bytes()).hexdigest()
        weights.verify(found)
    assert capfd.readouterr() == ("", "")
    published = hub.repositories["me/mine"].commits[hub.repositories["me/mine"].head]
    files = [path for path in folder.iterdir() if path.is_file()]
    assert published == {path.name: path.read_bytes() for path in files}  # weights/ is such a repository


def test_publish_without_a_token_says_how_to_get_one(hub: Hub):
    with pytest.raises(DownloadError) as caught:
        weights.publish("me/mine", weights.bundled_path(4).parent)
    assert "hf auth login" in (caught.value.hint or "")
    assert hub.repositories == {}


def test_publish_refuses_damaged_weights_before_anything_is_sent(hub: Hub, tmp_path):
    (tmp_path / "hasn_x4.safetensors").write_bytes(weights.bundled_path(4).read_bytes()[:-1])
    with pytest.raises(WeightsError, match="damaged"):
        weights.publish("me/mine", tmp_path)
    with pytest.raises(WeightsError, match="contains no hasn_x2"):
        weights.publish("me/mine", tmp_path / "nothing")
    assert hub.log == []


@pytest.fixture
def released(hub: Hub, monkeypatch) -> Hub:
    """A mirror of the authors' file, replaced by another file with its own size and hash."""
    hub.files["HASN.pth"] = SMALL
    monkeypatch.setenv("HASN_RELEASED_URL", f"{hub.url}/files/HASN.pth")
    monkeypatch.setattr(weights, "RELEASED_SHA256", hashlib.sha256(SMALL).hexdigest())
    monkeypatch.setattr(weights, "RELEASED_SIZE", len(SMALL))
    return hub


def test_the_released_weights_are_downloaded_once(released: Hub):
    seen = []
    found = weights.resolve("released", 4, progress=lambda *event: seen.append(event))
    assert found.path.read_bytes() == SMALL
    assert seen[-1] == ("released", len(SMALL), len(SMALL))
    released.always = 500
    assert weights.resolve("released", 4).path == found.path
    assert len(released.log) == 1


def test_several_processes_may_download_the_released_weights_at_once(released: Hub, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: weights.resolve("released", 4).path.read_bytes(), range(8)))
    assert found == [SMALL] * 8
    assert [p.name for p in (tmp_path / "assets").rglob("*") if p.is_file()] == ["HASN.pth"]


def test_a_cancelled_download_of_the_released_weights_leaves_nothing(released: Hub, tmp_path):
    def cancel(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weights.resolve("released", 4, progress=cancel)
    assert [p for p in (tmp_path / "assets").rglob("*") if p.is_file()] == []


def test_an_interrupted_download_of_the_released_weights_is_resumed(released: Hub):
    released.cuts = [100_000, 50_000]
    assert weights.resolve("released", 4).path.read_bytes() == SMALL
    assert [line.split()[2:] for line in released.log] == [[], ["bytes=100000-"], ["bytes=150000-"]]


def test_released_starts_again_from_a_server_without_ranges(released: Hub):
    released.cuts, released.ignore_ranges = [100_000], True
    assert weights.resolve("released", 4).path.read_bytes() == SMALL


@pytest.mark.parametrize(
    ("damage", "message"), [(SMALL[:-1] + b"\0", "is not the file it should be"), (SMALL + b"\0", "is longer than")]
)
def test_released_with_other_content_is_refused_and_not_kept(released: Hub, tmp_path, damage: bytes, message: str):
    released.files["HASN.pth"] = damage
    with pytest.raises(DownloadError, match=message):
        weights.resolve("released", 4)
    assert [p for p in (tmp_path / "assets").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(("status", "hint"), [(404, "moved"), (403, "address"), (429, "wait"), (500, "later")])
def test_a_permanent_error_for_the_released_weights_is_reported(released: Hub, status: int, hint: str):
    released.always = status
    with pytest.raises(DownloadError, match=str(status)) as caught:
        weights.resolve("released", 4)
    assert hint in (caught.value.hint or "")
    assert len(released.log) == (1 if status in (403, 404) else download_module.ATTEMPTS)


def test_a_temporary_error_for_the_released_weights_is_retried(released: Hub):
    released.statuses = [503, 429]
    assert weights.resolve("released", 4).path.read_bytes() == SMALL


def test_the_released_weights_from_an_unreachable_server_are_an_error(released: Hub, monkeypatch):
    monkeypatch.setenv("HASN_RELEASED_URL", "http://127.0.0.1:9/HASN.pth")
    with pytest.raises(DownloadError, match=r"cannot download http://127.0.0.1:9/HASN.pth: .*refused"):
        weights.resolve("released", 4)


def test_the_released_weights_from_an_invalid_address_are_an_error(released: Hub, monkeypatch):
    monkeypatch.setenv("HASN_RELEASED_URL", "mirror.example/HASN.pth")
    with pytest.raises(DownloadError, match=r"'mirror.example/HASN.pth' is not a web address"):
        weights.resolve("released", 4)


def test_released_weights_damaged_in_the_cache_are_downloaded_again(released: Hub):
    path = weights.resolve("released", 4).path
    path.write_bytes(b"rot")
    assert weights.resolve("released", 4).path.read_bytes() == SMALL


def test_the_released_weights_are_for_one_scale(released: Hub):
    with pytest.raises(WeightsError, match="for x4 only, not x2"):
        weights.resolve("released", 2)
    assert released.log == []


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("o/r", ("o/r", None, None)),
        ("o/r@v1", ("o/r", "v1", None)),
        ("hf://o/r@v1/a/b.pth", ("o/r", "v1", "a/b.pth")),
        ("hf://o/r@refs/pr/3/b.pth", ("o/r", "refs/pr/3", "b.pth")),
        ("hf://o/r@a%2Fb", ("o/r", "a/b", None)),
    ],
)
def test_hub_ids_are_read(text: str, parsed: tuple):
    found = hub_module.HubId.parse(text)
    assert found == hub_module.HubId(*parsed)


@pytest.mark.parametrize("text", ["hasn", "o/r/file.pth", "o r/x", "hf://only", ""])
def test_other_texts_are_not_hub_ids(text: str):
    assert hub_module.HubId.parse(text) is None


# the usual methods of Hub models


@pytest.mark.filterwarnings("ignore:Use 'content")
def test_from_pretrained_reads_what_publish_wrote(hub: Hub, monkeypatch):
    from hasn_cli import HASN

    monkeypatch.setenv("HF_TOKEN", hub.token)
    weights.publish("me/mine", weights.bundled_path(4).parent)
    for options, scale in (({}, 4), ({"scale": 2}, 2), ({"scale": 3, "revision": "main"}, 3)):
        network = HASN.from_pretrained("me/mine", **options)
        expected = weights.load_network("hasn", scale).state_dict()
        assert isinstance(network, HASN)
        assert not network.training
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


@pytest.mark.filterwarnings("ignore:Use 'content")
def test_a_hub_id_reads_what_push_to_hub_wrote(hub: Hub, monkeypatch):
    from hasn_cli import HASN

    monkeypatch.setenv("HF_TOKEN", hub.token)
    network = HASN(3)
    network.push_to_hub("me/mine")
    loaded = weights.load_network("me/mine", 3).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())
    with pytest.raises(WeightsError, match="no weights for x4"):
        weights.load_network("me/mine", 4)


def test_a_folder_goes_through_save_pretrained_and_back(tmp_path):
    from hasn_cli import HASN

    network = HASN(2, num_features=26)
    network.save_pretrained(tmp_path / "saved")
    for again in (HASN.from_pretrained(tmp_path / "saved"), weights.load_network(str(tmp_path / "saved"), 2)):
        assert (again.scale, again.num_features) == (2, 26)
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in again.state_dict().items())


def test_from_pretrained_is_strict(tmp_path):
    from safetensors.torch import save_file

    from hasn_cli import HASN

    HASN(3).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"scale": 2}')
    with pytest.raises(WeightsError, match="is for x3, not x2"):
        HASN.from_pretrained(tmp_path)

    state = HASN(2).state_dict()
    del state["conv_2.bias"]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"scale": 2}')
    with pytest.raises(WeightsError, match=r"missing conv_2\.bias"):
        HASN.from_pretrained(tmp_path)


# the real program


def test_the_command_pulls_from_the_endpoint_of_the_environment_and_then_works_offline(hub: Hub, tmp_path, x4: bytes):
    hub.add(REPO, {"config.json": b'{"scale": 4}', "model.safetensors": x4})
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}

    def run(*args: str, **extra: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "hasn_cli", "weights", *args]
        return subprocess.run(command, capture_output=True, text=True, env={**environment, **extra})

    pulled = run("pull", REPO, "-s", "4")
    assert (pulled.returncode, pulled.stderr) == (0, "")
    assert hashlib.sha256(Path(pulled.stdout.strip()).read_bytes()).hexdigest() == hashlib.sha256(x4).hexdigest()
    hub.log.clear()
    located = run("path", REPO, HF_HUB_OFFLINE="1")
    assert located.stdout == pulled.stdout
    assert hub.log == []
    absent = run("pull", "o/absent", "-s", "4")
    assert absent.returncode == 1
    assert absent.stdout == ""
    assert absent.stderr.splitlines()[0].endswith(f"there is no model o/absent on {hub.url}, or it is private")
    assert absent.stderr.splitlines()[1].startswith("hint: check the spelling")
    assert len(absent.stderr.splitlines()) == 2


def test_the_command_upscales_with_the_released_checkpoint_fetched_from_a_mirror(hub: Hub, tmp_path, shared: Path):
    from PIL import Image

    hub.files["HASN.pth"] = (shared / "weights" / "HASN_x4_released.pth").read_bytes()
    hub.cuts = [1_000_000]
    Image.new("RGB", (20, 16), "teal").save(tmp_path / "tiny.png")
    mirror = {"HF_HOME": str(tmp_path / "home"), "HASN_RELEASED_URL": f"{hub.url}/files/HASN.pth"}
    command = [sys.executable, "-m", "hasn_cli", "upscale", "tiny.png", "-w", "released"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **mirror}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(hub.log) == 2
    with Image.open(tmp_path / "tiny_x4.png") as large:
        assert large.size == (80, 64)
