"""Measures the network on a CPU: this program, the plain module, ONNX Runtime and OpenVINO.

    python benchmarks/inference.py speed              ratios of wall time, then seconds and peak memory
    python benchmarks/inference.py stages             a block's steps, in nanoseconds per pixel
    python benchmarks/inference.py flat               cost of a megapixel from 0.1 to 25 megapixels
    python benchmarks/inference.py memory             24 megapixels at x2 within budgets
    python benchmarks/inference.py tiles              what tiles change: the largest difference from the exact picture

Each engine runs in a process of its own, whose peak memory the operating system reports. This program and a peer take
turns after each picture, so that a change in the machine's speed affects both. The first picture is not counted.
`-o DIR` writes each table as JSON, and `speed` and `flat` also as a plot.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PEERS = ("plain", "onnxruntime", "openvino")
Engine = Callable[[np.ndarray], object]


def picture(width: int, height: int) -> np.ndarray:
    """A photo of this size, H×W×3 uint8: those in `examples/` side by side, continued by mirroring."""
    photos = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(EXAMPLES.glob("*.jpg"))]
    rows = min(len(photo) for photo in photos)
    image = np.concatenate([photo[:rows] for photo in photos], axis=1)[:height, :width]
    return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), "symmetric")


def as_input(image: np.ndarray) -> np.ndarray:
    """H×W×3 uint8 → 1×3×H×W floats."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32) / np.float32(255)


def make_engine(name: str, weights: str, scale: int, threads: int, options: dict) -> Engine:
    """The engine called `name`: a function that enlarges H×W×3 uint8."""
    import torch

    from hasn_cli.weights import load_network

    torch.set_num_threads(threads)
    network = load_network(weights, scale)
    if name == "hasn":
        from hasn_cli.inference import Upscaler

        return Upscaler(network, device="cpu", border=0, **options).upscale  # the same work as the others do
    if name == "plain":
        inference = torch.inference_mode()
        return lambda image: inference(network)(torch.from_numpy(as_input(image)))
    from hasn_cli.export import export_onnx

    model = Path(tempfile.mkdtemp()) / "network.onnx"
    export_onnx(network.eval(), model)
    if name == "onnxruntime":
        import onnxruntime

        wanted = onnxruntime.SessionOptions()
        wanted.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model, wanted, providers=["CPUExecutionProvider"])
        return lambda image: session.run(None, {"lr": as_input(image)})
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(model), "CPU", settings)
    return lambda image: compiled([as_input(image)])


def serve(pipe: Connection, arguments: tuple) -> None:
    """An engine's process: receives sizes and sends seconds; at None it sends its peak memory and ends."""
    engine = make_engine(*arguments)
    pipe.send(peak_memory())
    while (size := pipe.recv()) is not None:
        image = picture(*size)
        began = time.perf_counter()
        engine(image)
        pipe.send(time.perf_counter() - began)
    pipe.send(peak_memory())


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Remote:
    """An engine in a process of its own."""

    def __init__(self, name: str, args: argparse.Namespace, **options: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        arguments = (name, args.weights, args.scale, args.threads, options)
        self._process = context.Process(target=serve, args=(there, arguments), daemon=True)
        self._process.start()
        self.at_rest: int = self._pipe.recv()

    def run(self, size: tuple[int, int]) -> float:
        """Seconds for one picture of (width, height)."""
        self._pipe.send(size)
        return self._pipe.recv()

    def end(self) -> int:
        """Stop the process and return its peak memory."""
        self._pipe.send(None)
        peak: int = self._pipe.recv()
        self._process.join()
        return peak


def speed(args: argparse.Namespace) -> list[dict]:
    """Measure this program against each peer on the same picture, one peer at a time because of the memory."""
    rows = []
    for size in args.sizes:
        for name in args.peers:
            pair = {"hasn": Remote("hasn", args), name: Remote(name, args)}
            seconds: dict[str, list[float]] = {engine: [] for engine in pair}
            for turn in range((args.plain_rounds if name == "plain" else args.rounds) + 1):
                for engine, remote in pair.items():
                    taken = remote.run(size)
                    if turn:
                        seconds[engine].append(taken)
            ours, theirs = (statistics.median(seconds[engine]) for engine in pair)
            megapixels = size[0] * size[1] / 1e6
            peak, their_peak = (remote.end() >> 20 for remote in pair.values())
            rows.append({"size": f"{size[0]}×{size[1]}", "peer": name, "hasn ÷ peer": round(ours / theirs, 3),
                         "hasn s": round(ours, 3), "peer s": round(theirs, 3),
                         "hasn s/megapixel": round(ours / megapixels, 2),
                         "peer s/megapixel": round(theirs / megapixels, 2),
                         "rounds": len(seconds[name]), "hasn peak MiB": peak, "peer peak MiB": their_peak})  # fmt: skip
            print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def flat(args: argparse.Namespace) -> list[dict]:
    """Measure seconds per megapixel for each size; the sizes take turns, and small ones run more often."""
    sizes = [(365, 274), (768, 512), (1536, 1024), (3072, 2048), (6144, 4096)][: args.largest]
    engine = Remote("hasn", args)
    engine.run(sizes[0])
    seconds: dict[tuple[int, int], list[float]] = {size: [] for size in sizes}
    for turn in range(args.rounds):
        for place, size in enumerate(sizes):
            if turn < args.rounds // 2**place or turn == 0:
                seconds[size].append(engine.run(size))
    engine.end()
    costs = {size: statistics.median(taken) / (size[0] * size[1] / 1e6) for size, taken in seconds.items()}
    middle = statistics.median(costs.values())
    return [{"size": f"{w}×{h}", "megapixels": round(w * h / 1e6, 2), "s/megapixel": round(costs[w, h], 2),
             "÷ median size": round(costs[w, h] / middle, 3), "rounds": len(seconds[w, h])}
            for w, h in sizes]  # fmt: skip


def memory(args: argparse.Namespace) -> list[dict]:
    """Measure peak memory for a large picture within several budgets."""
    size, rows = args.sizes[-1] if args.sizes_given else (6000, 4000), []
    for wanted in args.budgets:
        precision, _, mebibytes = wanted.partition(":")
        budget = int(mebibytes) << 20 if mebibytes else None
        engine = Remote("hasn", args, precision=precision, memory=budget)
        seconds = engine.run(size)
        peak = engine.end()
        rows.append({"size": f"{size[0]}×{size[1]}", "features": precision,
                     "budget MiB": "none" if budget is None else budget >> 20, "peak MiB": peak >> 20,
                     "at rest MiB": engine.at_rest >> 20, "peak − rest MiB": (peak - engine.at_rest) >> 20,
                     "seconds": round(seconds, 1)})  # fmt: skip
        print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def tiles(args: argparse.Namespace) -> list[dict]:
    """Measure the largest and the mean difference, in grey levels, that tiles cause."""
    rows = []
    size = args.sizes[-1]
    image = picture(*size)
    exact = np.asarray(make_engine("hasn", args.weights, args.scale, args.threads, {})(image), np.int16)
    for tile, overlap in ((64, 16), (256, 32), (512, 32), (512, 128)):
        options = {"tile": tile, "overlap": overlap}
        cut = np.asarray(make_engine("hasn", args.weights, args.scale, args.threads, options)(image), np.int16)
        difference = np.abs(cut - exact)
        rows.append({"size": f"{size[0]}×{size[1]}", "tile": tile, "overlap": overlap,
                     "largest": int(difference.max()), "mean": round(float(difference.mean()), 4)})  # fmt: skip
    return rows


def stages(args: argparse.Namespace) -> list[dict]:
    """Measure a block's steps on one thread: PyTorch's operators, machine code, and what a large product would take."""
    import torch

    from hasn_cli.inference.blocks import OperatorBlock, find_native, make_block
    from hasn_cli.inference.fusion import fused_weights
    from hasn_cli.weights import load_network

    def best(step: Callable[[], object]) -> float:
        taken = []
        for _ in range(args.rounds * 5):
            began = time.perf_counter()
            step()
            taken.append(time.perf_counter() - began)
        return min(taken)

    torch.set_num_threads(1)
    weights = fused_weights(load_network(args.weights, args.scale).blocks[1])
    cpu, (height, width) = torch.device("cpu"), (24, 640)
    both = OperatorBlock(weights, cpu, torch.float32), make_block(weights, cpu, torch.float32)
    if find_native() is None:
        sys.exit("there is no machine code for this CPU")
    rows, x, x17 = [], torch.randn(height + 6, width, 52), torch.randn(height + 2, width, 17)
    n, low, out = torch.randn(height * width, 52), torch.randn(height * width, 16), torch.empty(height, width, 52)
    out16, out17, factors = torch.empty(height, width, 16), torch.empty(height, width, 17), torch.rand(52)
    firsts = [block.first(factors) for block in both]
    other = torch.randn(height, width, 52)
    with torch.inference_mode():
        a, b = torch.randn(256, 1024), torch.randn(1024, 1024)
        rate = 256 * 1024 * 1024 / best(lambda: a @ b)
        for name, products, step in (
            ("depthwise 7×7, normalise", 49 * 52, lambda i: firsts[i].normalised(x, out)),
            ("the same, 52→16", 49 * 52 + 52 * 16, lambda i: firsts[i].low(x, out16)),
            (
                "gated product",
                52 * (3 * 156 + 16) + 16 * 156 + 156 * 52,
                lambda i: both[i].gated(n, low, out.flatten(0, 1)),
            ),
            ("depthwise 7×7, sum", 50 * 52, lambda i: both[i].mix(x, other, factors, out)),
            ("3×3, 52→17, GELU", 9 * 52 * 17, lambda i: both[i].squeeze(x[: height + 2], out17)),
            ("3×3, 17→52", 9 * 17 * 52, lambda i: both[i].expand(x17, out)),
        ):
            before, after = (best(lambda i=i, step=step: step(i)) / (height * width) * 1e9 for i in range(2))
            rows.append({"step": name, "operators, ns/pixel": round(before), "machine code": round(after),
                         "at a large product's rate": round(products / rate * 1e9)})  # fmt: skip
    return rows


def show(rows: list[dict]) -> None:
    """Print rows as a Markdown table."""
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


def plot(rows: list[dict], path: Path) -> None:
    """Draw seconds per megapixel as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = [(f"{row['size']} hasn", row.get("hasn s/megapixel", row.get("s/megapixel"))) for row in rows]
    bars += [(f"{row['size']} {row['peer']}", row["peer s/megapixel"]) for row in rows if "peer" in row]
    bars.sort(reverse=True)
    figure, axes = pyplot.subplots(figsize=(7, 0.4 * len(bars) + 1))
    axes.barh([label for label, _ in bars], [cost for _, cost in bars], color="#3b6ea5")
    axes.set_xlabel("seconds an LR megapixel (less is better)")
    figure.tight_layout()
    figure.savefig(path)


def machine() -> dict:
    """The machine that the numbers come from."""
    import platform

    import torch

    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")] or [platform.processor()]
    return {"cpu": names[0], "cores": os.cpu_count(), "GiB": round(psutil.virtual_memory().total / 2**30),
            "torch": torch.__version__, "load before": os.getloadavg()[0]}  # fmt: skip


def a_size(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT."""
    width, height = text.split("x")
    return int(width), int(height)


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("speed", "stages", "flat", "memory", "tiles"))
    parser.add_argument("-w", "--weights", default="hasn")
    parser.add_argument("-s", "--scale", type=int, default=4)
    parser.add_argument("--sizes", type=a_size, nargs="+", help="WIDTHxHEIGHT in LR pixels")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain-rounds", type=int, default=5, help="fewer for the plain module, which takes minutes")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--largest", type=int, default=5, help="how many of the five sizes of `flat`")
    parser.add_argument("--budgets", nargs="+", default=["fp32", "fp32:7168", "fp16:4096", "fp16:1024"],
                        help="for `memory`: PRECISION or PRECISION:MEBIBYTES")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, help="a folder for JSON and plots")
    args = parser.parse_args()
    args.sizes_given = args.sizes is not None
    args.sizes = args.sizes or [(512, 384), (1536, 1024)]
    about = machine()
    rows = {"speed": speed, "stages": stages, "flat": flat, "memory": memory, "tiles": tiles}[args.table](args)
    show(rows)
    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()))
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        table = {"command": sys.argv, "machine": about, "rows": rows}
        (args.output / f"inference_{args.table}.json").write_text(json.dumps(table, indent=1, default=str))
        if args.table in ("speed", "flat"):
            plot(rows, args.output / f"inference_{args.table}.png")


if __name__ == "__main__":
    main()
