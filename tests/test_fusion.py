"""Kernels and fused weights give the same as the operators that they replace."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hasn_cli.inference import kernels
from hasn_cli.inference.blocks import OperatorBlock
from hasn_cli.inference.fusion import FusedNetwork, fused_weights
from hasn_cli.network import HASN

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["onednn", "public"])
def either_way(request, monkeypatch):
    """Run a test with oneDNN's fused operators and with PyTorch's public ones."""
    if request.param and not kernels.has_onednn(torch.float32):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(kernels, "has_onednn", lambda _: request.param)


def channels_last(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("activation", "expected"), [
    (kernels.IDENTITY, lambda x: x),
    (kernels.RELU6, F.relu6),
    (kernels.SIGMOID, torch.sigmoid),
    (kernels.GELU, F.gelu),
])  # fmt: skip
def test_activations_are_applied(either_way, activation, expected):
    x, weight, bias = 5 * channels_last(1, 7, 6, 9), torch.randn(5, 7, 3, 3), torch.randn(5)
    convolution = kernels.Convolution(weight, bias, CPU, torch.float32, padding=(0, 1), activation=activation)
    assert torch.allclose(convolution(x), expected(F.conv2d(x, weight, bias, padding=(0, 1))), atol=2e-5)
    rows = torch.randn(11, 7)
    pointwise = kernels.Pointwise(weight[..., 0, 0], bias, CPU, torch.float32, activation=activation)
    assert torch.allclose(pointwise(rows), expected(F.linear(rows, weight[..., 0, 0], bias)), atol=2e-5)


def test_products_and_sums_are_fused(either_way):
    rows, weight, bias, other = torch.randn(40, 52), torch.randn(30, 52), torch.randn(30), torch.randn(40, 30)
    pointwise = kernels.Pointwise(weight, bias, CPU, torch.float32)
    plain = F.linear(rows, weight, bias)
    assert torch.allclose(pointwise.times(rows, other), plain * other, atol=1e-4)
    assert torch.allclose(pointwise.plus(rows, other), plain + other, atol=1e-4)
    x, kernel, total = channels_last(1, 6, 8, 9), torch.randn(4, 6, 3, 3), channels_last(1, 4, 6, 9)
    expected = total + F.conv2d(x, kernel, torch.ones(4), padding=(0, 1))
    convolution = kernels.Convolution(kernel, torch.ones(4), CPU, torch.float32, padding=(0, 1))
    assert torch.allclose(convolution.plus(x, total), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [16, 17, 19, 5])
def test_channels_beyond_whole_vectors_are_like_the_others(either_way, channels):
    x, weight, bias = channels_last(1, 10, 7, 9), torch.randn(channels, 10, 3, 3), torch.randn(channels)
    out = torch.empty(5, 9, channels)
    kernels.NarrowConvolution(weight, bias, CPU, torch.float32, kernels.GELU).write(x, out)
    expected = F.gelu(F.conv2d(x, weight, bias, padding=(0, 1)))[0].permute(1, 2, 0)
    assert torch.allclose(out, expected, atol=2e-5)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_normalise_is_layer_norm_without_scale_and_shift(offset):
    rows = torch.randn(9, 8, 52) + offset
    expected = F.layer_norm(rows.double(), (52,), eps=1e-5).float()
    assert torch.allclose(kernels.normalise(rows.clone(), 1e-5), expected, atol=1e-5 + 1e-6 * offset)
    out = torch.empty_like(rows)
    assert kernels.normalise(rows.clone(), 1e-5, out) is out


def test_large_buffers_are_writable_and_of_their_shape():
    buffer = kernels.large_buffer((700, 100, 52), torch.float16, CPU)
    buffer.fill_(2)
    assert buffer.shape == (700, 100, 52) and buffer.float().sum() == 2 * buffer.numel()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_compiled_gated_product_is_the_same(monkeypatch):
    """The code that `compile` compiles on an accelerator, here on the CPU with the operators for accelerators."""
    monkeypatch.setattr(kernels, "has_onednn", lambda _: False)
    torch.manual_seed(0)
    block = OperatorBlock(fused_weights(HASN(2).blocks[0]), CPU, torch.float32)
    compiled = torch.compile(block.product, dynamic=True)
    with torch.inference_mode():
        for rows in (40, 90):
            n, low = torch.randn(rows, 52), torch.randn(rows, 16)
            assert torch.allclose(compiled(n, low), block.product(n, low), atol=1e-5)


def test_fusing_does_not_change_the_network():
    network = HASN(2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    FusedNetwork(network, CPU, torch.float32)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_gray_is_evaluated_as_the_mean_of_three_equal_channels():
    from hasn_cli.inference import Upscaler

    torch.manual_seed(0)
    gray = np.random.default_rng(0).random((21, 33, 1), dtype=np.float32)
    upscaler = Upscaler(HASN(3), device="cpu", threads=1)
    color = upscaler.upscale(np.repeat(gray, 3, axis=2))
    assert np.abs(upscaler.upscale(gray) - color.mean(2, keepdims=True)).max() < 2e-5
