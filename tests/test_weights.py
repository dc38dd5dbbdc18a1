"""Weights from the package and from files: found by name, read safely, refused with a reason, written completely."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from hasn_cli import weights
from hasn_cli.errors import WeightsError
from hasn_cli.network import HASN, SCALES
from hasn_cli.weights.checkpoint import load_state_dict_file, network_from_state_dict, save_network


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A state dict for x2 with random values."""
    torch.manual_seed(0)
    return HASN(2).state_dict()


def refusal(path: Path, scale: int = 2) -> WeightsError:
    """The error from loading `path`."""
    with pytest.raises(WeightsError) as caught:
        weights.load_network(str(path), scale)
    return caught.value


# from the package


@pytest.mark.parametrize("scale", SCALES)
def test_the_package_has_weights_for_every_scale(scale: int):
    network = weights.load_network("hasn", scale)
    assert network.scale == scale
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_bundled_weights_need_no_network(monkeypatch):
    def no_sockets(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_sockets)
    monkeypatch.setattr(socket, "create_connection", no_sockets)
    monkeypatch.setattr(socket, "getaddrinfo", no_sockets)
    from hasn_cli import upscale

    assert upscale(torch.zeros(16, 16, 3, dtype=torch.uint8).numpy(), 2, weights="hasn").shape == (32, 32, 3)


def test_the_checksums_beside_the_bundled_weights_are_correct():
    folder = weights.bundled_path(4).parent
    listed = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    actual = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
    assert listed == actual, "in weights/, run: sha256sum *.safetensors > SHA256SUMS"


def test_a_scale_without_bundled_weights_is_refused():
    with pytest.raises(WeightsError, match="no weights for x5"):
        weights.resolve("hasn", 5)


# from files


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"params": state},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"params": {"wrong": torch.zeros(1)}, "params_ema": state},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"params": {f"module._orig_mod.{name}": value for name, value in state.items()}},
    ],
    ids=["bare", "params", "state_dict", "params_ema first", "module.", "module._orig_mod."],
)
def test_a_pytorch_file_is_unwrapped(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "w.pth")
    loaded = weights.load_network(str(tmp_path / "w.pth"), 2).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_the_type_of_a_file_follows_from_its_content_and_not_its_name(tmp_path, state):
    torch.save(state, tmp_path / "w.safetensors")
    save_file(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "w.pth", "old.ckpt"):
        assert weights.load_network(str(tmp_path / name), 2).scale == 2


def test_half_precision_files_become_float32(tmp_path, state):
    save_file({name: value.half() for name, value in state.items()}, tmp_path / "w.safetensors")
    network = weights.load_network(str(tmp_path / "w.safetensors"), 2)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_a_file_whose_name_is_not_unicode_is_read(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.safetensors"
    shutil.copy(weights.bundled_path(2), path)
    assert weights.load_network(os.fsdecode(path), 2).scale == 2


@pytest.mark.parametrize(("scale", "width"), [(2, 52), (3, 52), (4, 26)])
def test_scale_and_width_follow_from_the_shapes(scale: int, width: int):
    network = network_from_state_dict(HASN(scale, width).state_dict())
    assert (network.scale, network.num_features) == (scale, width)


def test_the_released_checkpoint_loads_as_the_authors_published_it(shared):
    network = weights.load_network(str(shared / "weights" / "HASN_x4_released.pth"), 4)
    assert sum(p.numel() for p in network.parameters()) == 435_272
    content = (shared / "weights" / "HASN_x4_released.pth").read_bytes()
    assert len(content) == weights.RELEASED_SIZE
    assert hashlib.sha256(content).hexdigest() == weights.RELEASED_SHA256


class Payload:
    """An object whose pickle writes a file when it is loaded without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.target, "it ran")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("saver", ["torch", "legacy", "pickle"])
def test_a_pickle_with_more_than_tensors_is_refused_and_not_run(tmp_path, state, saver: str, protocol: int):
    path, trace = tmp_path / "w.pth", tmp_path / "trace"
    content = {**state, "extra": Payload(trace)}
    if saver == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=saver == "torch")
    error = refusal(path)
    assert "contains more than tensors" in error.message
    if protocol == 2:  # later protocols are refused at their first opcodes, which a damaged file may contain, too
        assert "is refused: loading it could run any code" in error.message
    assert "safetensors" in (error.hint or "")
    assert not trace.exists()
    torch.load(path, weights_only=False) if saver != "pickle" else pickle.loads(path.read_bytes())
    assert trace.exists()  # the payload works if it is allowed to run


def without(state: dict, *names: str) -> dict:
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "conv_2.bias"), "missing conv_2.bias"),
        (lambda s: {**s, "block_7.x": torch.zeros(1)}, "unknown block_7.x"),
        (lambda s: without(s, *[f"block_1.{p}.conv.bias" for p in ("f1", "f2", "f3", "g", "dwconv")]), " and 1 more"),
        (lambda s: {**s, "conv_2.bias": torch.zeros(51)}, r"conv_2.bias \[51\] for \[52\]"),
        (lambda s: {**s, "conv_2.bias": torch.full((52,), torch.nan)}, "not finite numbers in conv_2.bias"),
        (
            lambda s: {**s, "conv_2.bias": torch.full((52,), 1e300, dtype=torch.float64)},
            "not finite numbers in conv_2.bias",
        ),
        (lambda s: {**s, "conv_2.bias": torch.zeros(52, dtype=torch.int64)}, "not finite numbers in conv_2.bias"),
        (lambda s: {**s, "upsampler.0.weight": torch.zeros(75, 52, 3, 3)}, r"for none of the scales \(2, 3, 4\)"),
        (lambda s: {"some": torch.zeros(3)}, "is not for HASN"),
        (lambda s: {}, "is not for HASN"),
        (lambda s: {"params": {**s, "epoch": 3}}, "epoch is not a tensor"),
        (lambda s: [1, 2], "contains a list, not a state dict"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, state, change, message: str):
    torch.save(change(state), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        weights.load_network(str(tmp_path / "w.pth"), 2)


def test_a_file_that_claims_to_be_huge_takes_no_memory(tmp_path, state):
    wide = {**state, "conv_1.weight": torch.zeros(200_000, 3, 1, 1)}  # such a wide network would fill 500 GB
    save_file(wide, tmp_path / "w.safetensors")
    assert "does not fit HASN" in refusal(tmp_path / "w.safetensors").message


def test_tensors_that_repeat_one_number_are_refused_before_they_take_memory(tmp_path):
    number = torch.zeros(1)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in HASN(2, 6000).state_dict().items()}
    torch.save({name: number.expand(shape) for name, shape in shapes.items()}, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 50_000
    script = f"""
import resource, torch
from hasn_cli.weights import load_network
from hasn_cli.errors import WeightsError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_network({str(tmp_path / "w.pth")!r}, 2)
except WeightsError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    message, grown = done.stdout.splitlines()
    assert "contains less than it claims in conv_1.weight" in message
    assert int(grown) < 500_000  # KiB; a single one of these tensors would fill a gigabyte


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to("meta"), "a kind of tensor that HASN does not use"),
        (lambda tensor: tensor.to_sparse(), "a kind of tensor that HASN does not use"),
        (
            lambda _: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
            "a kind of tensor that HASN does not use",
        ),
        (lambda tensor: tensor[:0], "contains less than it claims in conv_1.weight"),
        (lambda _: torch.zeros(1 << 40, 0, 3, 3), "contains less than it claims in conv_1.weight"),
    ],
    ids=["meta", "sparse", "nested", "no rows", "endless and empty"],
)
def test_unsupported_kinds_of_tensors_are_refused(tmp_path, state, change, message: str):
    torch.save({**state, "conv_1.weight": change(state["conv_1.weight"])}, tmp_path / "w.pth")
    assert message in refusal(tmp_path / "w.pth").message


def test_the_wrong_scale_is_named(tmp_path, state):
    save_file(state, tmp_path / "w.safetensors")
    error = refusal(tmp_path / "w.safetensors", scale=4)
    assert "is for x2, not x4" in error.message
    assert "-s 2" in (error.hint or "")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("keep", [0, 3, 300, -1000, -1])
def test_a_damaged_file_is_refused(tmp_path, state, name: str, keep: int):
    path = tmp_path / name
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    assert str(path) in refusal(path).message


def test_a_damaged_pytorch_file_is_refused_but_not_called_dangerous(tmp_path):
    path, zipped = tmp_path / "w.pth", io.BytesIO()
    torch.save({"a": torch.zeros(2, 2), "b": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    torch.save({"a": torch.zeros(2, 2), "b": torch.ones(3)}, zipped)
    rng = random.Random(1)
    accused = 0
    for whole in (path.read_bytes(), zipped.getvalue()):
        for _ in range(150):
            content = bytearray(whole)
            for place in rng.choices(range(2, len(content) // 2), k=3):
                content[place] = rng.randrange(256)
            path.write_bytes(content)
            accused += "could run any code" in refusal(path).message
    assert accused < 60  # files in which the damage happens to name something to import


def test_a_compressed_file_is_refused_before_it_grows(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"conv_1.weight": torch.zeros(1000, 1000)}, path)
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as deflated:
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    assert "is compressed" in refusal(tmp_path / "z.pth").message


def test_garbage_is_refused(tmp_path):
    garbage = [b"PK\x03\x04", b"\x80\x02", b"<html>not found</html>", b"\0" * 100, b"\x80garbage garbage"]
    for index, content in enumerate(garbage):
        (tmp_path / f"{index}.pth").write_bytes(content)
        assert f"{index}.pth" in refusal(tmp_path / f"{index}.pth").message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no weights called 'nothing'"),
        ("./nothing", "no weights at ./nothing"),
        ("a/b/c", "no weights called 'a/b/c'"),
        ("a/nothing.pth", "no weights at a/nothing.pth"),
        ("~nobody-of-that-name/w.pth", "no weights at ~nobody-of-that-name/w.pth"),
    ],
)
def test_a_name_that_means_nothing_is_refused_without_asking_a_hub(monkeypatch, name: str, message: str):
    monkeypatch.setattr("hasn_cli.weights.hub.fetch", lambda *_: pytest.fail("asked"))
    with pytest.raises(WeightsError, match=message) as caught:
        weights.resolve(name, 4)
    assert caught.value.hint


def test_a_folder_is_read_like_a_repository(tmp_path, state):
    save_file(state, tmp_path / "hasn_x2.safetensors")
    assert weights.load_network(str(tmp_path), 2).scale == 2
    with pytest.raises(WeightsError, match="no weights for x3"):
        weights.resolve(str(tmp_path), 3)
    (tmp_path / "config.json").write_text('{"files": {"3": "three.pth"}}')
    torch.save(HASN(3).state_dict(), tmp_path / "three.pth")
    assert weights.load_network(str(tmp_path), 3).scale == 3


def test_a_file_comes_before_a_hub_id_of_the_same_name(tmp_path, monkeypatch, state):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    save_file(state, tmp_path / "owner" / "repo")
    assert weights.resolve("owner/repo", 2).source == "file"


# writing


def test_a_saved_network_can_be_loaded(tmp_path):
    network = HASN(3)
    save_network(network, tmp_path / "w.safetensors", {"steps": "5"})
    loaded = network_from_state_dict(load_state_dict_file(tmp_path / "w.safetensors"))
    assert loaded.scale == 3
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "w.safetensors"
    target.write_bytes(b"before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_network(HASN(2), target)
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


# the command


def hasn_weights(*args: str) -> str:
    """stdout of `hasn weights ARGS`."""
    from hasn_cli.cli.weights import command

    outcome = CliRunner().invoke(command, args, catch_exceptions=False, standalone_mode=False)
    assert not outcome.return_value, outcome.output
    return outcome.stdout


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    """Hide a released checkpoint that is in the cache of this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))


def test_list_is_tab_separated_without_a_terminal():
    lines = [line.split("\t") for line in hasn_weights("list").splitlines()]
    assert [(cells[0], cells[1], cells[-1]) for cells in lines] == [
        ("name", "scale", "here"),
        *((name, f"x{scale}", "yes") for name in ("clean", "photo") for scale in (2, 3, 4)),
        ("released", "x4", "no"),
    ]
    assert lines[3][2:4] == ["435,272", "23.28 G"]


def test_list_on_a_terminal_fits_80_columns(monkeypatch, capsys):
    from hasn_cli.cli import weights as shown

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(shown.sys.stdout, "isatty", lambda: True)
    shown.command.main(["list"], standalone_mode=False)
    table = capsys.readouterr().out
    table = click.unstyle(table)
    assert "…" not in table
    assert "apache-2.0 package" in table
    assert max(map(len, table.splitlines())) <= 80


def test_list_as_json_contains_every_number():
    rows = json.loads(hasn_weights("list", "--json"))
    by_name = {(row["name"], row["scale"]): row for row in rows}
    x4, released = by_name["clean", 4], by_name["released", 4]
    assert x4["sha256"] == hashlib.sha256(weights.bundled_path(4).read_bytes()).hexdigest()
    assert x4["size"] == weights.bundled_path(4).stat().st_size
    assert (x4["parameters"], x4["licence"], x4["present"]) == (435_272, "apache-2.0", True)
    assert (released["sha256"], released["present"], released["path"]) == (weights.RELEASED_SHA256, False, None)


def test_numbers_come_from_the_model_card(tmp_path, state):
    save_file(state, tmp_path / "hasn_x2.safetensors")
    card = """---
license: cc0-1.0
model-index:
- name: hasn_x2
  results:
  - task: {type: image-to-image}
    dataset: {type: set5, name: Set5}
    metrics: [{type: psnr, name: PSNR-Y, value: 37.5}, {type: ssim, value: 0.95}]
  - task: {type: image-to-image}
    dataset: {type: set14, name: Set14}
    metrics: [{type: psnr, value: 33}]
- name: hasn_x3
  results: [{dataset: {name: Set5}, metrics: [{type: psnr, value: 1}]}]
---
"""
    (tmp_path / "README.md").write_text(card)
    (row,) = json.loads(hasn_weights("info", str(tmp_path), "--json"))
    assert row["psnr"] == {"Set5": 37.5, "Set14": 33.0}
    assert row["licence"] == "cc0-1.0"


@pytest.mark.parametrize("header", ["- : [", "model-index: [{name: hasn_x2}]", "model-index: 7", "just words"])
def test_a_broken_model_card_is_ignored(tmp_path, state, header: str):
    save_file(state, tmp_path / "hasn_x2.safetensors")
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
    (row,) = json.loads(hasn_weights("info", str(tmp_path), "--json"))
    assert row["psnr"] == {}


def test_info_says_that_the_release_has_no_licence_file():
    text = hasn_weights("info", "released")
    assert "The authors' checkpoint has no licence file" in text
    assert "hasn weights pull released" in text
    assert weights.RELEASED_SHA256 in text


def test_path_prints_a_line_for_each_scale():
    assert hasn_weights("path", "hasn", "-s", "3") == f"{weights.bundled_path(3)}\n"
    assert len(hasn_weights("path", "hasn").splitlines()) == 3


def test_path_lists_a_single_file_only_for_its_own_scale(tmp_path, state):
    save_file(state, tmp_path / "w.safetensors")
    assert hasn_weights("path", str(tmp_path / "w.safetensors")).splitlines() == [str(tmp_path / "w.safetensors")]
    with pytest.raises(WeightsError, match="is for x2, not x4"):
        hasn_weights("path", str(tmp_path / "w.safetensors"), "-s", "4")


def test_verify_accepts_the_bundled_weights():
    text = hasn_weights("verify")
    assert text.count("SHA-256 and tensors are correct") == 6
    assert "released: not on this machine" in text


def test_verify_finds_a_flipped_bit(tmp_path, capsys):
    from hasn_cli.cli.weights import command

    for path in weights.bundled_path(4).parent.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "hasn_x3.safetensors").read_bytes())
    content[-100] ^= 1
    (tmp_path / "hasn_x3.safetensors").write_bytes(content)
    assert command.main(["verify", str(tmp_path)], standalone_mode=False) == 1
    told = capsys.readouterr()
    assert told.out.count("are correct") == 2
    assert "hasn_x3.safetensors has SHA-256" in told.err


def test_finding_weights_does_not_import_torch():
    script = "import sys; from hasn_cli import weights; weights.files_of('hasn'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False"
    assert weights.SCALES == SCALES
