"""`Upscaler`: arrays in, larger arrays out, within the budget, whatever goes wrong on the device."""

from __future__ import annotations

import copy
import json
import mmap
import subprocess
import sys
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from hasn_cli.errors import BudgetError, DeviceError, UsageError
from hasn_cli.inference import Upscaler, devices, kernels, streaming
from hasn_cli.network import HASN
from hasn_cli.weights import load_network


@pytest.fixture(scope="module")
def network() -> HASN:
    """The included x2 network."""
    return load_network("hasn", 2)


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    return (rng.random((height // 4 + 1, width // 4 + 1, channels)).repeat(4, 0).repeat(4, 1)[:height, :width]).astype(
        np.float32
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_are_the_rounded_floats(network, dtype):
    image = (photo(40, 30) * np.iinfo(dtype).max).astype(dtype)
    upscaler = Upscaler(network, device="cpu", threads=2)
    floats = upscaler.upscale((image / np.iinfo(dtype).max).astype(np.float32))
    result = upscaler.upscale(image)
    assert result.dtype == dtype and result.shape == (80, 60, 3)
    difference = np.abs(result - np.clip(floats, 0, 1) * np.iinfo(dtype).max)
    assert difference.max() < (0.51 if dtype is np.uint8 else 2)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 9), (14, 14), (15, 3)])
def test_small_pictures_are_padded_as_the_network_pads_them(network, size):
    image = photo(*size)
    with torch.inference_mode():
        expected = network(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(Upscaler(network, device="cpu", border=0).upscale(image) - expected).max() < 2e-5


def test_float16_features_change_less_than_a_grey_level(network):
    image = photo(60, 50)
    exact = Upscaler(network, device="cpu").upscale(image)
    half = Upscaler(network, device="cpu", precision="fp16")
    assert half.precision == "fp16"
    assert 0 < np.abs(half.upscale(image) - exact).max() < 1 / 255


def test_bfloat16_is_close(network):
    image = photo(60, 50)
    exact = Upscaler(network, device="cpu").upscale(image)
    assert np.abs(Upscaler(network, device="cpu", precision="bf16").upscale(image) - exact).mean() < 2 / 255


def test_features_too_large_for_float16_are_done_again_in_float32(network):
    """Weights whose features pass 65 504: conv_1 made large, the depthwise convolutions behind it normalise again."""
    large = load_network("hasn", 2)
    with torch.no_grad():
        large.conv_1.weight *= 1e6
        large.conv_1.bias *= 1e6
    image = photo(30, 30)
    exact = Upscaler(large, device="cpu").upscale(image)
    half = Upscaler(large, device="cpu", precision="fp16").upscale(image)
    assert np.isfinite(exact).all()
    assert np.array_equal(half, exact)


def test_tta_is_the_mean_over_the_eight_turns(network):
    image = photo(33, 47)
    upscaler = Upscaler(network, device="cpu", threads=1)
    turns = []
    for flip in (False, True):
        for quarter in range(4):
            turned = np.ascontiguousarray(np.rot90(image[:, ::-1] if flip else image, quarter))
            back = np.rot90(upscaler.upscale(turned), -quarter)
            turns.append(back[:, ::-1] if flip else back)
    averaged = Upscaler(network, device="cpu", threads=1, tta=True).upscale(image)
    assert np.abs(averaged - np.mean(turns, axis=0)).max() < 2e-5


def test_requested_tiles_are_close_to_the_whole_and_not_used_if_one_tile_is_enough(network):
    image = photo(90, 70)
    whole = Upscaler(network, device="cpu").upscale(image)
    assert np.array_equal(Upscaler(network, device="cpu", tile=90).upscale(image), whole)
    tiled = Upscaler(network, device="cpu", tile=64, overlap=20)
    assert tiled.plan((90, 70)).tiles == 4
    assert 0 < np.abs(tiled.upscale(image) - whole).mean() < 0.02


@pytest.mark.parametrize("options", [{}, {"tta": True}, {"tile": 32}])
def test_progress_rises_to_one(network, options):
    seen: list[float] = []
    Upscaler(network, device="cpu", threads=2, strip=4, **options).upscale(photo(60, 40), seen.append)
    assert len(seen) > 20 and seen == sorted(set(seen)) and seen[-1] == 1.0
    assert max(np.diff([0, *seen])) < 0.2


def test_progress_may_cancel_at_once_and_the_next_picture_is_complete(network):
    upscaler, image = Upscaler(network, device="cpu", threads=2), photo(400, 300)
    calm = upscaler.upscale(photo(30, 30))

    class GivenUp(BaseException):
        pass

    def cancel(fraction: float) -> None:
        raise GivenUp

    began = time.process_time()  # the processor's time, which other programs do not lengthen
    with pytest.raises(GivenUp):
        upscaler.upscale(image, cancel)
    assert time.process_time() - began < 2
    assert np.array_equal(upscaler.upscale(photo(30, 30)), calm)


def test_settings_of_the_calling_thread_are_not_changed(network):
    before = torch.get_num_threads()
    Upscaler(network, device="cpu", threads=2).upscale(photo(30, 30))
    assert torch.get_num_threads() == before
    assert (torch.tensor(1e-39) * 1).item() != 0  # denormals are flushed in the workers alone


def test_the_plan_describes_what_happens_and_respects_the_budget(network):
    budget = 1 << 30
    half = Upscaler(network, device="cpu", precision="fp16", memory=budget, threads=2).plan((4000, 6000))
    assert half.tiles > 1 and half.bytes <= budget and "tiles" in str(half)
    roomy = Upscaler(network, device="cpu", memory=16 << 30, threads=2).plan((4000, 6000))
    assert roomy.tile is None and "whole" in str(roomy)
    with pytest.raises(BudgetError) as caught:
        Upscaler(network, device="cpu", tile=0, memory=budget).upscale(np.zeros((4000, 6000, 3), np.uint8))
    assert caught.value.hint


@pytest.fixture(scope="module")
def large(network):
    """A picture that does not fit into one tile, and its exact enlargement."""
    image = photo(420, 400)
    return image, Upscaler(network, device="cpu").upscale(image)


def test_beyond_the_budget_large_tiles_are_close_to_the_whole(network, large):
    image, exact = large
    small = Upscaler(network, device="cpu", threads=1, memory=60 << 20)
    plan = small.plan((420, 400), itemsize=4)
    assert plan.tiles > 1 and plan.tile >= 192 and plan.bytes <= 60 << 20
    assert np.abs(small.upscale(image) - exact).mean() < 0.01


PEAK = """
import json, resource, sys, numpy as np
from hasn_cli.inference import Upscaler
from hasn_cli.weights import load_network
height, width, options = json.loads(sys.argv[1])
upscaler = Upscaler(load_network("hasn", 2), device="cpu", threads=2, **options)
upscaler.upscale(np.zeros((20, 20, 3), np.uint8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
upscaler.upscale(np.zeros((height, width, 3), np.uint8))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def grown(height: int, width: int, **options: object) -> int:
    """Memory growth in bytes for a picture of this size, in a new process that has upscaled once before."""
    command = [sys.executable, "-c", PEAK, json.dumps([height, width, options])]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "precision"), [(2 << 30, "fp32"), (400 << 20, "fp16")])
def test_peak_memory_stays_within_the_budget(budget, precision):
    """Six megapixels: what the budget allows, and 200 MiB for what Python and PyTorch grow by."""
    assert grown(2000, 3000, memory=budget, precision=precision) < budget + (200 << 20)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width", "budget"), [(2400, 160, 150 << 20), (160, 2400, 150 << 20)])
def test_peak_memory_of_turned_pictures_stays_within_the_budget(height, width, budget):
    assert grown(height, width, memory=budget, tta=True) < budget + (40 << 20)


@pytest.mark.parametrize("size", [(2400, 160), (160, 2400)])
def test_a_plan_for_turned_pictures_has_room_for_them_upright_and_on_their_side(network, size):
    turning = Upscaler(network, device="cpu", threads=2, tta=True).plan(size)
    for sides in (size, size[::-1]):
        assert turning.bytes > Upscaler(network, device="cpu", threads=2).plan(sides).bytes


class FailingEvaluation(streaming.Evaluation):
    """Runs out of memory like an accelerator while strips or maps are too large."""

    strips: tuple[int, ...] = ()
    kept: tuple[bool, ...] = ()
    error: Exception = torch.OutOfMemoryError("out of memory")
    most_rows = 10**9
    most_pixels = 10**9

    def run(self, sink, progress):
        type(self).strips += (self.strip,)
        type(self).kept += (self.normalised is not None,)
        progress(0.3)
        if self.strip > self.most_rows or self.height * self.width > self.most_pixels:
            raise self.error
        super().run(sink, progress)


def failing(monkeypatch, **limits: object) -> type[FailingEvaluation]:
    kind = type("Failing", (FailingEvaluation,), limits)
    monkeypatch.setattr("hasn_cli.inference.upscaler.Evaluation", kind)
    return kind


OUTS_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: …"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GiB)"),
]


@pytest.mark.parametrize("error", OUTS_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_strip_until_it_fits(network, monkeypatch, error):
    image, seen = photo(60, 400), []
    exact = Upscaler(network, device="cpu").upscale(image)
    kind = failing(monkeypatch, most_rows=5, error=error)
    assert np.abs(Upscaler(network, device="cpu").upscale(image, seen.append) - exact).max() < 2e-5
    first = kind.strips[0]
    assert list(kind.strips) == [first, first // 2, first // 4, first // 8]
    assert first // 4 > 5 >= first // 8
    assert not any(kind.kept)
    assert seen == sorted(seen)


def test_out_of_memory_first_drops_the_features_that_an_accelerator_holds(network, monkeypatch):
    kind = failing(monkeypatch, most_rows=5)
    upscaler, first_plan = Upscaler(network, device="cpu"), Upscaler._plan_for
    monkeypatch.setattr(upscaler, "_plan_for", lambda *given: replace(first_plan(upscaler, *given), keep=True))
    upscaler.upscale(photo(60, 400))
    first = kind.strips[0]
    assert list(kind.strips) == [first, first, first // 2, first // 4, first // 8]
    assert list(kind.kept) == [True, False, False, False, False]


def test_out_of_memory_with_the_shortest_strips_uses_tiles(network, large, monkeypatch):
    image, exact = large
    failing(monkeypatch, most_pixels=230 * 230)
    tiled = Upscaler(network, device="cpu").upscale(image)
    assert 0 < np.abs(tiled - exact).mean() < 0.01


def test_out_of_memory_with_requested_tiles_uses_smaller_ones_with_a_suitable_overlap(network, large, monkeypatch):
    image, exact = large
    failing(monkeypatch, most_pixels=230 * 230)
    tiled = Upscaler(network, device="cpu", tile=390, overlap=128).upscale(image)
    assert 0 < np.abs(tiled - exact).mean() < 0.01


def test_threads_that_cannot_be_started_are_an_error_and_the_others_end(network):
    """This runs in a process of its own, which must end."""
    script = """
import threading
start = threading.Thread.start
def second_fails(thread):
    if thread.name == "hasn_1":
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = second_fails
import numpy as np
from hasn_cli.errors import HasnError
from hasn_cli.inference import Upscaler
from hasn_cli.weights import load_network
try:
    Upscaler(load_network("hasn", 2), device="cpu", threads=3).upscale(np.zeros((20, 20, 3), np.uint8))
except HasnError as error:
    print(error.message, "|", error.hint)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert "cannot start 3 threads" in ended.stdout and "OMP_NUM_THREADS" in ended.stdout


def test_running_out_of_memory_for_good_is_a_readable_error(network, monkeypatch):
    failing(monkeypatch, most_pixels=0)
    with pytest.raises(BudgetError, match="out of memory on cpu") as caught:
        Upscaler(network, device="cpu").upscale(photo(40, 40))
    assert caught.value.hint


def test_features_too_large_for_float16_after_the_last_block_are_computed_in_float32(network):
    loud = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in loud.block_6.cab.cab[2].parameters():
            tensor *= 1e7
        loud.conv_2.weight *= 1e-7
    image = photo(40, 40)
    exact = Upscaler(loud, device="cpu").upscale(image)
    assert np.isfinite(exact).all()
    np.testing.assert_allclose(Upscaler(loud, device="cpu", precision="fp16").upscale(image), exact, atol=1e-5)


def test_pytorchs_own_error_for_exhausted_memory_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert devices.is_out_of_memory(caught.value)
    assert not devices.is_out_of_memory(RuntimeError("broken"))


def test_running_out_of_memory_after_falling_back_to_float32_is_a_readable_error(network, monkeypatch):
    tried = []

    class Failing(streaming.Evaluation):
        def run(self, sink, progress):
            tried.append((self.features.data.dtype, self.strip))
            if self.features.data.dtype is not torch.float32:
                raise streaming.NonFinite
            raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("hasn_cli.inference.upscaler.Evaluation", Failing)
    with pytest.raises(BudgetError, match="out of memory on cpu"):
        Upscaler(network, device="cpu", precision="bf16").upscale(photo(60, 400))
    assert [dtype for dtype, _ in tried[1:]] == [torch.float32] * (len(tried) - 1)
    strips = [strip for _, strip in tried[1:7]]
    assert strips == [strips[0] >> halved for halved in range(6)] and strips[-1] == 1


def test_a_tiles_maps_are_freed_before_the_next_tile(network, monkeypatch):
    alive, most = weakref.WeakSet(), []

    class Counted(streaming.FeatureMap):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr(streaming, "FeatureMap", Counted)
    Upscaler(network, device="cpu", tile=24, threads=1, border=0).upscale(photo(40, 40))
    assert len(most) == 4 and max(most) == 1


def test_large_maps_work_on_a_kernel_without_large_pages(monkeypatch):
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999, raising=False)
    buffer = kernels.large_buffer((1 << 22,), torch.uint8, torch.device("cpu"))
    buffer[-1] = 7
    assert buffer[-1] == 7


def test_an_error_in_one_band_reaches_the_caller_and_stops_the_others(network, monkeypatch):
    monkeypatch.setattr(streaming.LowMap, "rows", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        Upscaler(network, device="cpu", threads=2).upscale(photo(80, 40))


@pytest.mark.parametrize(("name", "words"), [("cuda:7", "no cuda:7"), ("tpu", "unknown"), ("cuda:x", "unknown")])
def test_missing_devices_are_named(network, name, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match=words) as caught:
        Upscaler(network, device=name)
    assert caught.value.hint


def test_auto_chooses_the_best_available_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.resolve_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.resolve_device("auto").type == "mps"


def test_precision_follows_the_device():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert devices.precisions("auto", cuda) == (torch.float16, torch.float16)
    assert devices.precisions("auto", cpu) == (torch.float32, torch.float32)
    assert devices.precisions("fp16", cpu) == (torch.float32, torch.float16)
    with pytest.raises(DeviceError):
        devices.precisions("fp8", cpu)


@pytest.mark.parametrize("image", [
    np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 3)),
])  # fmt: skip
def test_arrays_that_are_not_images_are_refused(network, image):
    with pytest.raises(ValueError, match="an image is"):
        Upscaler(network, device="cpu").upscale(image)


def test_impossible_tiles_are_refused_before_any_picture(network):
    with pytest.raises(UsageError):
        Upscaler(network, device="cpu", tile=64, overlap=40)


def test_float32_pictures_may_contain_nan(network):
    image = photo(20, 20)
    image[0, 0] = np.nan
    assert np.isnan(Upscaler(network, device="cpu").upscale(image)).any()
