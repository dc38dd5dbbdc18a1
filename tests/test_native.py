"""Machine code gives what PyTorch's operators give, is kept in a private cache, and is used only where it works."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasn_cli import files
from hasn_cli.inference import Upscaler, blocks
from hasn_cli.inference.blocks import NativeBlock, OperatorBlock
from hasn_cli.inference.fusion import fused_weights
from hasn_cli.network import HASN
from hasn_cli.weights import load_network

codegen = pytest.importorskip("hasn_cli.inference.codegen", reason="llvmlite is not installed")
native = pytest.importorskip("hasn_cli.inference.native")

CPU = torch.device("cpu")
LANES = [lanes for lanes in (8, 16) if lanes <= codegen.vector_lanes()]
pytestmark = pytest.mark.skipif(not LANES, reason="this CPU has no AVX2")


@pytest.fixture(scope="module")
def weights() -> blocks.BlockWeights:
    """The included network's third block."""
    return fused_weights(load_network("hasn", 4).blocks[2])


@pytest.fixture(scope="module", params=LANES, ids=lambda lanes: f"{lanes} lanes")
def block(request, weights) -> NativeBlock:
    """That block as machine code, with vectors of this length."""
    return NativeBlock(weights, native.Native(request.param))


@pytest.fixture(scope="module")
def operators(weights) -> OperatorBlock:
    """That block with PyTorch's operators."""
    return OperatorBlock(weights, CPU, torch.float32)


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(native.LEAST, 75), seed=st.integers(0, 999))
def test_every_step_equals_the_operators_for_any_size(block, operators, height, width, seed):
    factors, other = torch.rand(52), features(height, width, 52, seed=seed + 1)
    above = features(height + 6, width, 52, seed=seed)
    ours, theirs = block.first(factors), operators.first(factors)
    n = ours.normalised(above)
    assert close(n, theirs.normalised(above))

    results = []
    for steps, first in ((block, ours), (operators, theirs)):
        low, gated = torch.empty(height, width, 16), torch.empty(height * width, 52)
        mixed, squeezed = torch.empty(height, width, 52), torch.empty(height, width, 17)
        first.low(above, low)
        steps.gated(n.flatten(0, 1), low.flatten(0, 1), gated)
        steps.mix(above, other, factors, mixed)
        steps.squeeze(above[: height + 2], squeezed)
        results.append((low, gated, mixed, squeezed, steps.expand(above[: height + 2, :, :17].contiguous(), None)))
    assert all(close(mine, expected) for mine, expected in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_results_are_written_into_the_given_tensor_whatever_its_precision(block, operators, dtype):
    above, out = features(8, 20, 52), torch.empty(2, 20, 52, dtype=dtype)
    assert block.first(torch.ones(52)).normalised(above, out) is out
    expected = operators.first(torch.ones(52)).normalised(above)
    assert torch.allclose(out.float(), expected, atol=2e-5 if dtype is torch.float32 else 5e-3)


def test_nothing_is_read_outside_a_strip(block):
    """NaN on all sides of the strip would spread to the results."""
    room = torch.full((20, 30, 52), torch.nan)
    room[5:13] = features(8, 30, 52)
    assert torch.isfinite(block.first(torch.ones(52)).normalised(room[5:13])).all()
    out = torch.empty(6, 30, 17)
    block.squeeze(room[5:13], out)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("value", [-100.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 100.0])
def test_large_and_small_values_pass_through_the_activations_correctly(block, weights, value):
    """Only the bias is left, so that every value is the same."""

    def constant(linear: blocks.Linear) -> blocks.Linear:
        return torch.zeros_like(linear[0]), torch.full_like(linear[1], value)

    extreme = replace(weights, squeeze=constant(weights.squeeze), gate=constant(weights.gate))
    out = torch.empty(1, 20, 17)
    ours = NativeBlock(extreme, block.native)
    ours.squeeze(torch.zeros(3, 20, 52), out)
    assert close(out, torch.nn.functional.gelu(torch.full_like(out, value)))
    results = [torch.empty(20, 52) for _ in range(2)]
    for steps, result in zip((ours, OperatorBlock(extreme, CPU, torch.float32)), results, strict=True):
        steps.gated(features(20, 52), torch.zeros(20, 16), result)
    assert close(*results)


@pytest.mark.parametrize("lanes", LANES)
def test_a_picture_is_exact_with_vectors_of_any_length(monkeypatch, lanes):
    monkeypatch.setattr(blocks, "find_native", lambda: native.Native(lanes))
    network = load_network("hasn", 3).eval()
    image = np.random.default_rng(0).random((61, 83, 3), dtype=np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    upscaler = Upscaler(network, device="cpu", threads=2, border=0, strip=9)
    assert np.abs(upscaler.upscale(image) - expected).max() < 2e-5
    assert isinstance(upscaler._network(torch.float32).blocks[0].steps, NativeBlock)


def test_a_network_of_other_widths_runs_with_operators():
    network = HASN(2, num_features=20)
    assert isinstance(blocks.make_block(fused_weights(network.blocks[0]), CPU, torch.float32), OperatorBlock)


# The cache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setattr(files, "private_cache", lambda name: tmp_path)
    return tmp_path


def test_machine_code_is_compiled_once_and_then_loaded(folder, monkeypatch):
    native.Native(8)
    [stored] = folder.iterdir()
    monkeypatch.setattr(native, "write", lambda *_: pytest.fail("it was compiled again"))
    assert native._is_correct(native.Native(8))
    assert list(folder.iterdir()) == [stored]


@pytest.mark.parametrize("damage", [lambda code: code[:-1], lambda code: b"", lambda code: b"\0" * len(code)])
def test_damaged_machine_code_is_compiled_again(folder, damage):
    native.Native(8)
    [stored] = folder.iterdir()
    whole = stored.read_bytes()
    stored.write_bytes(damage(whole))
    assert native._is_correct(native.Native(8))
    assert len(stored.read_bytes()) == len(whole)


def test_without_a_cache_folder_it_is_compiled_each_time(monkeypatch):
    monkeypatch.setattr(files, "private_cache", lambda name: None)
    assert native._is_correct(native.Native(8))


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_cache_folder_that_others_can_write_to_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda _: tmp_path)
    folder = files.private_cache("compiled")
    assert folder is not None and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    assert files.private_cache("compiled") is None


# Where it cannot be used


@pytest.mark.parametrize(("limit", "longest"), [("SSE41", 0), ("AVX2", 8), ("AVX512_CORE", 16), ("", 16)])
def test_the_limit_on_instructions_for_pytorch_holds_here_too(monkeypatch, limit, longest):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert codegen.vector_lanes() == min(longest, max(LANES))


def test_without_llvmlite_operators_are_used():
    without = "import sys; sys.modules['llvmlite'] = None\n"
    code = without + "from hasn_cli.inference.blocks import find_native; print(find_native())"
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert process.stdout.strip() == "None"


def test_operators_are_used_if_the_machine_code_gives_other_results(monkeypatch):
    native.load_native.cache_clear()
    monkeypatch.setattr(native, "pack_depthwise", lambda weight, bias: native._packed([weight[:, 0], bias]))
    assert native.load_native() is None
    monkeypatch.undo()
    native.load_native.cache_clear()
    assert native.load_native() is not None
