"""Malicious weights, and malicious texts beside them, give one clear line and take little time and memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from hasn_cli import weights
from hasn_cli.cli.weights import _print_table, command
from hasn_cli.errors import HasnError, WeightsError
from hasn_cli.network import HASN
from hasn_cli.training.patches import PatchPlan
from hasn_cli.training.trainer import Recipe, Trainer
from hasn_cli.weights import checkpoint, pytorch
from hasn_cli.weights.catalogue import entries
from hasn_cli.weights.documents import read_front_matter


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return HASN(2).state_dict()


def refusal(path: Path | str, scale: int = 2) -> str:
    with pytest.raises(WeightsError) as caught:
        weights.load_network(str(path), scale)
    assert "\n" not in caught.value.message
    return caught.value.message


def grown_by(path: Path) -> tuple[str, int]:
    """The error from loading a file, and by how many MB the peak memory of this process grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refusal(path)
    return message, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


def archive(pickled: bytes, **members: bytes) -> bytes:
    """A file with the layout of `torch.save`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("w/data.pkl", pickled)
        for name, content in {"version": b"3\n", "byteorder": b"little", **members}.items():
            zipped.writestr(f"w/{name}", content)
    return buffer.getvalue()


def repacked(data: bytes, method: int) -> bytearray:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", method) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return bytearray(buffer.getvalue())


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


# archives


def test_a_compressed_archive_with_a_corrupt_extra_field_is_refused_before_it_grows(tmp_path):
    data = repacked(saved({"conv_1.weight": torch.zeros(60_000_000)}), zipfile.ZIP_DEFLATED)
    assert len(data) < 1_000_000
    central = data.index(b"PK\x01\x02")
    name_length = struct.unpack_from("<H", data, central + 28)[0]
    corrupt = b"\x01\x00\xff\xff"  # a field that claims 65,535 bytes and has none
    struct.pack_into("<H", data, central + 30, len(corrupt))
    data[central + 46 + name_length : central + 46 + name_length] = corrupt
    end = data.index(b"PK\x05\x06")
    size = struct.unpack_from("<I", data, end + 12)[0]
    struct.pack_into("<I", data, end + 12, size + len(corrupt))
    (tmp_path / "w.pth").write_bytes(data)
    message, grown = grown_by(tmp_path / "w.pth")
    assert "its archive cannot be read (Corrupt extra field" in message
    assert grown < 100


def test_an_archive_of_a_version_that_does_not_exist_is_refused(tmp_path, state):
    data = repacked(saved(state), zipfile.ZIP_STORED)
    data[data.index(b"PK\x01\x02") + 6] = 250
    (tmp_path / "w.pth").write_bytes(data)
    assert "its archive cannot be read (zip file version 25.0)" in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "harm",
    [lambda data: data[:-22], lambda data: data[:-3], lambda data: data.replace(b"little", b"LITTLE")],
    ids=["without its end", "cut", "changed"],
)
def test_an_archive_that_cannot_be_read_to_its_end_is_refused(tmp_path, state, harm):
    (tmp_path / "w.pth").write_bytes(harm(bytes(repacked(saved(state), zipfile.ZIP_STORED))))
    assert "its archive cannot be read" in refusal(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_a_repeated_name_is_refused(tmp_path, state):
    data = io.BytesIO(saved(state))
    with zipfile.ZipFile(data, "a") as zipped:
        zipped.writestr(zipped.namelist()[0], b"another")
    (tmp_path / "w.pth").write_bytes(data.getvalue())
    assert "is not an archive from PyTorch" in refusal(tmp_path / "w.pth")


def test_members_that_share_their_bytes_are_refused(tmp_path):
    data = bytearray(archive(pickle.dumps({}, 2), **{f"data/{index}": b"\0" * 90_000 for index in range(3)}))
    place, first = -1, None
    for _ in range(7):
        place = data.find(b"PK\x01\x02", place + 1)
        if place < 0:
            break
        length = struct.unpack_from("<H", data, place + 28)[0]
        if b"data/" in data[place + 46 : place + 46 + length]:
            first = struct.unpack_from("<I", data, place + 42)[0] if first is None else first
            struct.pack_into("<II", data, place + 20, 200_000, 200_000)
    (tmp_path / "w.pth").write_bytes(data)
    assert "contains less than it claims" in refusal(tmp_path / "w.pth")


# pickles


class Call:
    """An object whose pickle asks the reader to call something."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        Call(bytearray, 1 << 31),
        Call(torch.FloatTensor, 1 << 29),
        Call(torch._utils._rebuild_tensor_v2, 1, 0, (1 << 40,)),
    ],
    ids=["bytearray", "tensor class", "rebuild"],
)
def test_a_kilobyte_that_asks_for_gigabytes_is_refused(tmp_path, call: Call):
    torch.save({"conv_1.weight": call}, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 2000
    message, grown = grown_by(tmp_path / "w.pth")
    assert "is refused: loading it could run any code" in message or "is damaged" in message
    assert grown < 100


class Lie:
    """A tensor that claims a wrong size."""

    def __init__(self, size: tuple, stride: tuple, offset: int = 0) -> None:
        self.claim = offset, size, stride

    def __repr__(self) -> str:  # names the test, the same in every process
        return str(self.claim)[:40]

    def __reduce__(self) -> tuple:
        function, (storage, *_) = torch.zeros(4).__reduce_ex__(2)
        return function, (storage, *self.claim, False, {})


@pytest.mark.parametrize(
    "lie",
    [
        Lie((1 << 30,), (1,)),
        Lie((2,), (1 << 40,)),
        Lie((4,), (1,), 1),
        Lie((4,), (1,), -1),
        Lie((-4,), (1,)),
        Lie((1 << 62, 4), (0, 1)),
        Lie((True, 4), (0, 1)),
        Lie((1,) * 2000, (1,) * 2000),
        Lie((2, 2), (1,)),
    ],
    ids=str,
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_that_does_not_lie_within_the_file_is_refused(tmp_path, lie: Lie, zipped: bool):
    torch.save({"conv_1.weight": lie}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert "is damaged" in refusal(tmp_path / "w.pth")


def test_tensors_that_share_their_bytes_are_refused(tmp_path):
    names = HASN(2, 520).state_dict()
    largest = torch.zeros(max(tensor.numel() for tensor in names.values()))
    sharing = {name: largest[: tensor.numel()].view(tensor.shape) for name, tensor in names.items()}
    torch.save(sharing, tmp_path / "w.pth")
    assert "tensors share their bytes" in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02r\xff\xff\xff\x7f.",  # stores something under number 2,147,483,647
        b"\x80\x02" + b")" + b"\x85" * 150_000 + b".",  # tuples within tuples
        b"\x80\x02}(" + b")" + b"\x85" * 150_000 + b"K\x01u.",  # the same as a key, which would be hashed recursively
        b"\x80\x02" + b"]q\x00" + b"(h\x00" * 100_000 + b"e" * 100_000 + b".",  # lists of lists
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text of two gigabytes
        b"\x80\x02\x8b\xff\xff\xff\x7fabc.",  # an integer of two gigabytes
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsNsb.",  # a dict whose methods are replaced
        b"\x80\x02}X\x06\x00\x00\x00paramsNs.",
        b"\x80\x02",
        b"\x80\x02.",
    ],
    ids=["memo", "tuples", "key", "lists", "text", "integer", "methods", "no dict", "no end", "nothing"],
)
def test_a_malicious_pickle_is_refused(tmp_path, pickled: bytes):
    for data in (archive(pickled), pickled):
        (tmp_path / "w.pth").write_bytes(data)
        assert str(tmp_path / "w.pth") in refusal(tmp_path / "w.pth")


def test_a_pickle_of_many_instructions_is_refused_before_they_are_carried_out(tmp_path):
    (tmp_path / "w.pth").write_bytes(archive(b"\x80\x02" + b"N0" * checkpoint.MOST_DESCRIPTION + b"N."))
    began = time.process_time()
    assert "over the limit" in refusal(tmp_path / "w.pth")
    assert time.process_time() - began < 20


# safetensors, and values


@pytest.mark.parametrize(
    "header",
    [
        {"conv_1.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}},
        {"conv_1.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 40]}},
        {"conv_1.weight": {"dtype": "F32", "shape": [1 << 63, 2], "data_offsets": [0, 4]}},
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"},
        {"conv_1.weight": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"conv_1.weight": {"dtype": "F32", "shape": [1, 1, 1, 1], "data_offsets": [0, 4]}},
    ],
)
def test_a_wrong_safetensors_header_is_refused(tmp_path, header: dict):
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    assert refusal(tmp_path / "w.safetensors")


def test_a_safetensors_header_of_many_megabytes_is_not_parsed(tmp_path):
    entries = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(40_000)}
    text = json.dumps(entries).encode()
    assert len(text) > checkpoint.MOST_DESCRIPTION
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    assert "is not a weights file" in refusal(tmp_path / "w.safetensors")


def test_a_file_of_many_gigabytes_is_not_read(tmp_path):
    for name, head in (("w.pth", b"PK\x03\x04"), ("w.safetensors", struct.pack("<Q", 100))):
        with (tmp_path / name).open("wb") as file:
            file.write(head)
            file.truncate(30 << 30)
        assert "the limit is 268 MB, and HASN's weights take 2" in refusal(tmp_path / name)


def test_only_regular_files_are_read():
    assert "/dev/zero is not a regular file" in refusal("/dev/zero")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_values_that_are_not_finite_are_refused(tmp_path, state, value: float, suffix: str):
    broken = {name: tensor.clone() for name, tensor in state.items()}
    broken["block_1.f1.conv.weight"].view(-1)[7] = value
    path = tmp_path / f"w.{suffix}"
    save_file(broken, path) if suffix == "safetensors" else torch.save(broken, path)
    assert "not finite numbers in block_1.f1.conv.weight" in refusal(path)


# the texts beside them


NESTED = "[" * 200_000


@pytest.mark.parametrize("config", [NESTED, '{"files":' * 100_000, "[1" * 100_000, "{" + " " * (2 << 20) + "}"])
def test_a_config_that_is_nested_deeply_or_long_is_refused_in_one_line(tmp_path, config: str):
    (tmp_path / "config.json").write_text(config)
    assert "config.json of" in refusal(tmp_path)
    assert "cannot be read" in refusal(tmp_path)


def test_from_pretrained_refuses_a_config_that_is_nested_deeply(tmp_path):
    from hasn_cli import HASN as Pretrained

    (tmp_path / "config.json").write_text(NESTED)
    with pytest.raises(WeightsError, match="nested too deeply"):
        Pretrained.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name", ["../w.safetensors", "/etc/passwd", "a/../../w.pth", "..\\w.pth", "C:w.pth", "a\nb", ""]
)
def test_a_config_can_name_only_files_in_its_own_folder(tmp_path, name: str):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"files": {"2": name}}))
    assert "names a file outside of it" in refusal(tmp_path / "folder")


BOMB = "\n".join([f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)])


@pytest.mark.parametrize(
    "matter",
    [
        f"a: &a [1, 1, 1]\n{BOMB}\nlicense: mit",
        "a: " + "[" * 20_000,
        "a: " + "{b: " * 20_000,
        "- " * 20_000,
        "license: mit\n" + "a: 1\n" * 40_000,
        "license: !!python/object/apply:os.system ['true']",
        "license: \x00",
        "license: " + "1" * 20_000,
    ],
    ids=["aliases", "lists", "tables", "sequences", "long", "objects", "a NUL", "a long number"],
)
def test_malicious_front_matter_is_ignored(tmp_path, matter: str):
    (tmp_path / "README.md").write_text(f"---\n{matter}\n---\n# A card\n")
    began = time.process_time()
    assert read_front_matter(tmp_path / "README.md") == {}
    assert time.process_time() - began < 10


def test_weights_beside_a_malicious_card_are_listed(tmp_path, state):
    save_file(state, tmp_path / "hasn_x2.safetensors")
    (tmp_path / "README.md").write_text(f"---\n{BOMB}\n---\n")
    assert [entry.licence for entry in entries([str(tmp_path)])] == ["not stated"]


def test_text_from_a_card_cannot_colour_or_break_the_table(tmp_path, state, capsys):
    save_file(state, tmp_path / "hasn_x2.safetensors")
    (tmp_path / "README.md").write_text('---\nlicense: "\\x1b[2J[/red] mit\\nsecond\\tline"\n---\n')
    listed = CliRunner().invoke(command, ["list", str(tmp_path)]).stdout
    assert "\x1b" not in listed
    assert len(listed.splitlines()) == 2
    assert "\\x1b[2J[/red] mit\\nsecond\\tline" in listed
    _print_table(list(entries([str(tmp_path)])))
    assert "\x1b" not in (shown := capsys.readouterr().out)
    assert "[/red]" in shown


@pytest.mark.parametrize("sums", [b"\xff\xfe", b"0" * (2 << 20)])
def test_checksums_that_are_not_text_are_an_error_of_one_line(tmp_path, state, sums: bytes):
    save_file(state, tmp_path / "hasn_x2.safetensors")
    (tmp_path / "SHA256SUMS").write_bytes(sums)
    with pytest.raises(WeightsError, match="SHA256SUMS cannot be read"):
        weights.verify(weights.files_of(str(tmp_path), 2)[0])


# a run's checkpoint

PLAN = PatchPlan(side=16, batch=2, candidates=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run of one step."""
    folder = tmp_path_factory.mktemp("run")
    list(Trainer([np.zeros((96, 96, 3), np.uint8)], [], folder, Recipe(iterations=1, patches=PLAN)).run())
    return folder


def infinite(state: dict) -> dict:
    state["networks"][2]["conv_1.bias"][3] = float("inf")
    return state


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {"step": Call(os.system, "true")},
        lambda state: state | {"history": Call(bytearray, 1 << 40)},
        lambda state: state | {"plan": 3},
        lambda state: state | {"step": "many"},
        lambda state: state | {"networks": {}},
        lambda state: state | {"history": [{"no": "report"}]},
        lambda state: state | {"optimizers": [3] * len(state["optimizers"])},
        lambda state: {name: value for name, value in state.items() if name != "seconds"},
        infinite,
    ],
    ids=["code", "memory", "plan", "step", "networks", "history", "optimizers", "seconds", "infinite"],
)
def test_a_strangers_checkpoint_is_an_error_of_one_line(tmp_path, run: Path, change):
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    torch.save(change(state), tmp_path / "checkpoint.pt")
    with pytest.raises(HasnError, match=r"checkpoint\.pt is damaged, or no checkpoint of a run") as caught:
        Trainer([np.zeros((96, 96, 3), np.uint8)], [], tmp_path, Recipe(iterations=2, patches=PLAN))
    assert "\n" not in caught.value.message


def test_a_checkpoint_as_weights_is_an_error_of_one_line(run: Path):
    assert "contains no plain state dict" in refusal(run / "checkpoint.pt")


def test_the_reader_gives_the_same_tensors_as_torch(run: Path):
    def equal(ours: object, theirs: object) -> bool:
        if isinstance(theirs, torch.Tensor):
            return ours.dtype == theirs.dtype and ours.stride() == theirs.stride() and torch.equal(ours, theirs)
        if isinstance(theirs, dict):
            return list(ours) == list(theirs) and all(equal(ours[key], value) for key, value in theirs.items())
        if isinstance(theirs, list | tuple):
            return type(ours) is type(theirs) and all(map(equal, ours, theirs)) and len(ours) == len(theirs)
        return type(ours) is type(theirs) and ours == theirs

    path = run / "checkpoint.pt"
    assert equal(pytorch.read_pytorch_file(path, 1 << 20), torch.load(path, weights_only=True))
