"""The ONNX file computes the same as the network at any size, and contains nothing about where it was made."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hasn_cli.errors import HasnError, MissingExtraError
from hasn_cli.export import check_onnx, export_onnx
from hasn_cli.weights import load_network

onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The file that `hasn export` wrote, in a folder that did not exist."""
    from hasn_cli.cli.export import command

    path = tmp_path_factory.mktemp("onnx") / "new" / "out.onnx"
    outcome = CliRunner().invoke(command, ["--onnx", str(path), "-s", "2"], catch_exceptions=False)
    assert outcome.exit_code == 0
    return path


@pytest.fixture
def one_block():
    """A network of one block instead of six, which is exported in a fraction of the time."""
    network = load_network("hasn", 2)
    for number in range(2, 7):
        setattr(network, f"block_{number}", torch.nn.Identity())
    return network


@pytest.mark.parametrize("shape", [(1, 15, 15), (1, 41, 18), (2, 24, 33), (1, 16, 130)])
def test_it_computes_what_the_network_computes_at_other_sizes(exported, shape: tuple[int, int, int]):
    count, height, width = shape
    lr = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = load_network("hasn", 2)(lr).numpy()
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    (found,) = session.run(["sr"], {"lr": lr.numpy()})
    assert found.shape == (count, 3, 2 * height, 2 * width)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_is_a_valid_model_that_describes_its_input(exported):
    model = onnx.load(str(exported))
    onnx.checker.check_model(model, full_check=True)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["scale"] == "2"
    assert "at least 15" in about["input"]
    assert about["sha256"]


def test_it_contains_no_path_of_the_machine_that_made_it(exported):
    content = exported.read_bytes()
    assert b"site-packages" not in content
    assert b"hasn_cli" not in content


def test_a_file_of_another_network_does_not_pass_the_check(exported):
    other = load_network("hasn", 2)
    with torch.no_grad():
        other.conv_1.bias += 0.01
    with pytest.raises(HasnError, match="differs from the network"):
        check_onnx(exported, other, [(16, 16)])


def test_an_opset_that_the_exporter_cannot_write_is_an_error_without_noise(one_block, tmp_path, capfd):
    with pytest.raises(HasnError, match="cannot write opset 99"):
        export_onnx(one_block, tmp_path / "out.onnx", opset=99)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_a_model_that_fails_the_check_replaces_nothing(one_block, tmp_path, monkeypatch):
    monkeypatch.setattr("hasn_cli.export.TOLERANCE", -1.0)
    target = tmp_path / "out.onnx"
    target.write_bytes(b"good")
    with pytest.raises(HasnError, match="differs from the network"):
        export_onnx(one_block, target)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"good"]


def test_without_onnxruntime_nothing_is_started_or_replaced(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("begun"))
    target = tmp_path / "out.onnx"
    target.write_bytes(b"good")
    with pytest.raises(MissingExtraError, match="running ONNX"):
        export_onnx(load_network("hasn", 2), target)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"good"]


def test_a_missing_folder_is_created(exported):
    assert exported.parent.name == "new" and exported.exists()


def test_stdout_is_refused(tmp_path, monkeypatch):
    from hasn_cli.cli.export import command

    monkeypatch.chdir(tmp_path)
    assert "cannot go to stdout" in str(CliRunner().invoke(command, ["--onnx", "-"]).exception)
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_not_overwritten(exported):
    from hasn_cli.cli.export import command

    before = exported.read_bytes()
    outcome = CliRunner().invoke(command, ["--onnx", str(exported), "-s", "2"])
    assert "exists already" in str(outcome.exception)
    assert exported.read_bytes() == before
