"""Train and measure on a machine with one CUDA card that is only available in short slices.

1. Here: put pictures, weights and validation pictures into a kit of at most 60 MB, or into several.

       python benchmarks/gpu.py pack pictures/ --valid valid/ --weights weights/ -o kit/ --parts 2

2. Copy this repository and the kits to the machine. It needs Python, PyTorch with CUDA and a C++ compiler, NumPy,
   Pillow, psutil and safetensors; hasn need not be installed. Train there for a slice. Try `--minutes 0.8` first.

       python benchmarks/gpu.py train kit/1 --more kit/2 -o out/ --minutes 6 --end-rate 0
       python benchmarks/gpu.py train kit/1 --more kit/2 --from out/ -o photo/ --minutes 3 --degrade photo \
           --rate 5e-4 --end-rate 0 --warm-up 400 --seed 1

3. Measure exactness and speed, in the same slice or another one.

       python benchmarks/gpu.py measure kit/1 -o out/ --minutes 3

4. Bring out/ back: at most eight files of at most 16 MB. To continue in another slice, use `--from out/` and another
   seed, and keep the rate constant (`--end-rate` equal to `--rate`) in all slices but the last.

A slice starts from averaged weights and new optimizers. Everything is written to out/ at each validation, so a slice
that is cut short loses little. All paths also run on a CPU with `-d cpu`, slowly.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # hasn need not be installed

from hasn_cli.inference import Upscaler
from hasn_cli.network import HASN, SCALES
from hasn_cli.training.patches import PatchPlan
from hasn_cli.training.recipe import LogRow, Recipe
from hasn_cli.training.trainer import Trainer
from hasn_cli.weights.checkpoint import load_state_dict_file, network_from_state_dict, save_network

SIDE = 384  # of the validation pictures' middle, in HR pixels
SUFFIXES = {".png", ".webp", ".avif", ".tif", ".tiff", ".bmp"}
Clock = Callable[[], float]  # seconds left


# packing


def pack(args: argparse.Namespace) -> None:
    """Fill the kits: validation pictures and weights without loss, then as many training pictures as fit."""
    kits = [args.output] if args.parts == 1 else [args.output / str(part + 1) for part in range(args.parts)]
    for kit in kits:
        for name in ("pictures", "valid", "weights"):
            (kit / name).mkdir(parents=True, exist_ok=True)
        for path in sorted(args.weights.glob("hasn_x?.safetensors")) if args.weights else []:
            shutil.copy(path, kit / "weights")
        for path in pictures_in(args.valid):
            save_lossless(middle(read(path)), kit / "valid" / f"{path.stem}.webp")
    room = [int(args.megabytes * 1e6) - size_of(kit) for kit in kits]
    paths = by_turns([pictures_in(folder) for folder in args.folders])
    taken, pixels = 0, 0
    with ThreadPoolExecutor(args.threads) as pool:
        for data, area in pool.map(lambda path: encode(path, args.format, args.quality), paths):
            part = max(range(len(kits)), key=room.__getitem__)
            if len(data) > room[part]:
                pool.shutdown(wait=False, cancel_futures=True)
                break
            (kits[part] / "pictures" / f"{taken:04d}.{args.format}").write_bytes(data)
            room[part] -= len(data)
            taken, pixels = taken + 1, pixels + area
    sizes = " and ".join(f"{size_of(kit) / 1e6:.1f} MB" for kit in kits)
    print(f"{args.output}: {taken} of {len(paths)} pictures, {pixels / 1e6:.0f} MP, {sizes}")


def pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def by_turns(groups: list[list[Path]]) -> list[Path]:
    """All paths, in their order within each group, so that any beginning holds the same share of each group."""
    placed = [((i + 0.5) / len(group), path) for group in groups for i, path in enumerate(group)]
    return [path for _, path in sorted(placed, key=lambda pair: pair[0])]


def read(path: Path) -> np.ndarray:
    """H×W×3 uint8."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def middle(image: np.ndarray) -> np.ndarray:
    top, left = (max(0, (length - SIDE) // 2) for length in image.shape[:2])
    return image[top : top + SIDE, left : left + SIDE]


def save_lossless(image: np.ndarray, path: Path) -> None:
    Image.fromarray(image).save(path, "WEBP", lossless=True, exact=True)


def encode(path: Path, file_format: str, quality: int) -> tuple[bytes, int]:
    """A picture as AVIF with full chroma, or as lossless WebP; and its area in pixels."""
    import io

    image, buffer = Image.fromarray(read(path)), io.BytesIO()
    if file_format == "avif":
        image.save(buffer, "AVIF", quality=quality, subsampling="4:4:4", speed=8, max_threads=1)
    else:
        image.save(buffer, "WEBP", lossless=True, exact=True)
    return buffer.getvalue(), image.width * image.height


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# training


def train(args: argparse.Namespace) -> None:
    """Train for a slice and write weights, log and settings to the output folder."""
    left = clock(args.minutes)
    args.output.mkdir(parents=True, exist_ok=True)
    check_device(args.device)
    valid = read_folder(args.kit / "valid", args.threads)
    pictures = [p for kit in (args.kit, *args.more) for p in read_folder(kit / "pictures", args.threads)]
    say(left, f"{len(pictures)} pictures, {sum(p.shape[0] * p.shape[1] for p in pictures) / 1e6:.0f} MP")
    cuda = args.device.startswith("cuda")
    plan = PatchPlan(side=args.patch, batch=args.batch, seed=args.seed, degrade=args.degrade)
    smallest = plan.smallest_side(max(args.scale))
    pictures = [p for p in pictures if min(p.shape[:2]) >= smallest]
    if not pictures:
        raise SystemExit(f"no picture has {smallest} pixels a side")
    recipe = Recipe(
        scales=tuple(args.scale), minutes=1.0, rate=args.rate, end_rate=args.end_rate, warm_up=args.warm_up,
        ema=args.ema, patches=plan, device=args.device, half=args.precision == "bf16", piece=args.batch,
        report_every=args.report_every, validate_every=args.validate_every, loss="rmse",
        initial="weights" if args.start else None, workers=max(0, args.threads - 2),
        own_depthwise=not cuda, compile=args.compile and cuda, captured=args.captured and cuda,
    )  # fmt: skip
    torch.backends.cudnn.allow_tf32 = False  # what is not in bfloat16 is to be exact
    torch.backends.cudnn.benchmark = True
    states = {scale: load_state_dict_file(args.start / f"hasn_x{scale}.safetensors") for scale in args.scale} \
        if args.start else None  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        minutes = max(0.05, 0.93 * (left() - args.reserve) / 60)  # the rest is for validations
        recipe = replace(recipe, minutes=minutes)
        trainer = Trainer(pictures, valid, Path(work) / "run", recipe, states and (lambda: states))
        say(left, f"training for up to {minutes:.1f} minutes")
        for report in trainer.run():
            say(left, line(report))
            if report.psnr:
                export(trainer, args.output)
            if left() < args.reserve / 2:
                say(left, "out of time")
                break
        export(trainer, args.output)
    say(left, f"done; everything is in {args.output}")


def read_folder(folder: Path, threads: int) -> list[np.ndarray]:
    paths = pictures_in(folder)
    if not paths:
        raise SystemExit(f"{folder} holds no pictures")
    if any(path.suffix == ".avif" for path in paths) and not features.check("avif"):
        raise SystemExit("this Pillow cannot read AVIF: pack with --format webp, or install pillow>=11.3")
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(read, paths))


def export(trainer: Trainer, folder: Path) -> None:
    """The averaged weights of all scales at this step, which share a body, and the log."""
    from hasn_cli.training.log import write_csv

    for scale, network in trainer.averaged.items():
        save_network(network, folder / f"hasn_x{scale}.safetensors")
    write_csv(trainer.history, folder / "log.csv")


def line(report: LogRow) -> str:
    psnr = "".join(f"  x{scale} {value:.3f} dB" for scale, value in report.psnr.items())
    dead = f"  dead {sum(report.shut)}" if report.shut else ""
    per_second = report.pixels / max(1e-9, report.seconds) / 1e6
    return (
        f"step {report.step}  {report.pixels / 1e6:.1f} M pixels  {per_second:.3f} M/s  rate {report.rate:.1e}  "
        f"loss {report.loss:.3f}{psnr}{dead}"
    )


# measuring


def measure(args: argparse.Namespace) -> None:
    """Exactness and speed of inference on the device; each row is printed and saved as soon as it is known."""
    left = clock(args.minutes)
    args.output.mkdir(parents=True, exist_ok=True)
    check_device(args.device)
    photos = read_folder(args.kit / "valid", args.threads)
    weights = args.start or args.kit / "weights"
    networks = {
        scale: network_from_state_dict(load_state_dict_file(weights / f"hasn_x{scale}.safetensors"), scale=scale)
        for scale in SCALES
    }
    rows: list[dict[str, object]] = []
    for row in (*exactness(networks, photos, args, left), *speeds(networks, photos, args, left)):
        rows.append(row)
        say(left, json.dumps(row))
        table = {"device": device_name(args.device), "torch": torch.__version__, "rows": rows}
        (args.output / "measure.json").write_text(json.dumps(table, indent=1))


def exactness(
    networks: dict[int, HASN], photos: list[np.ndarray], args: argparse.Namespace, left: Clock
) -> Iterator[dict[str, object]]:
    """The largest and the mean difference from the plain module in float64, in grey levels."""
    side = args.side
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    for scale, network in networks.items():
        for name, image in (("photo", photos[0][:side, :side]), ("noise", noise)):
            exact = plain(network.double(), image, args.device, torch.float64)
            network.float()
            for precision, tf32 in (("fp32", True), ("fp32", False), ("fp16", True), ("bf16", True)):
                torch.backends.cudnn.allow_tf32 = tf32  # PyTorch's default is True
                row: dict[str, object] = {"what": "exactness", "scale": scale, "picture": name,
                                          "precision": precision, "TF32 allowed": tf32}  # fmt: skip
                yield row | attempt(lambda n=network, i=image, p=precision, e=exact: difference(n, i, p, e, args), left)
                torch.backends.cudnn.allow_tf32 = True


def difference(
    network: HASN, image: np.ndarray, precision: str, exact: np.ndarray, args: argparse.Namespace
) -> dict[str, object]:
    upscaler = Upscaler(network, device=args.device, precision=precision)
    error = np.abs(upscaler.upscale(image.astype(np.float32) / np.float32(255)) - exact) * 255
    return {"largest": round(float(error.max()), 5), "mean": round(float(error.mean()), 6)}


def speeds(
    networks: dict[int, HASN], photos: list[np.ndarray], args: argparse.Namespace, left: Clock
) -> Iterator[dict[str, object]]:
    """Megapixels a second, LR and SR, of the engine and of the plain module; the most telling rows first."""
    cuda = args.device.startswith("cuda")
    half = torch.float16 if cuda else torch.bfloat16
    for megapixels in args.megapixels:
        image = tiled(photos[0], megapixels)
        for scale, network in networks.items():
            engine = lambda n=network, **how: Upscaler(n, device=args.device, **how).upscale  # noqa: E731
            candidates: dict[str, Callable[[], Callable[[np.ndarray], object]]] = {
                "hasn, default": lambda e=engine: e(),
                "plain module, half": lambda n=network: plain_engine(n, args.device, half),
                "hasn, fp32": lambda e=engine: e(precision="fp32"),
                "plain module, fp32": lambda n=network: plain_engine(n, args.device, torch.float32),
                "hasn, --compile": lambda e=engine: e(compile=True),
                "plain module, half, compiled": lambda n=network: plain_engine(n, args.device, half, compiled=True),
            }
            for name, build in candidates.items():
                if args.skip_compiled and "compile" in name:
                    continue
                row: dict[str, object] = {"what": "speed", "scale": scale, "LR megapixels": megapixels, "engine": name}
                yield row | attempt(lambda b=build, i=image, s=scale: timed(b(), i, s, args), left)


def timed(
    engine: Callable[[np.ndarray], object], image: np.ndarray, scale: int, args: argparse.Namespace
) -> dict[str, object]:
    """The first run, which includes compiling, and the median of the following ones."""
    cuda = args.device.startswith("cuda")
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(1 + args.rounds):
        began = time.perf_counter()
        engine(image)
        synchronize(args.device)
        seconds.append(time.perf_counter() - began)
    median = sorted(seconds[1:])[args.rounds // 2]
    area = image.shape[0] * image.shape[1] / 1e6
    peak = torch.cuda.max_memory_allocated() >> 20 if cuda else None
    return {
        "seconds": round(median, 4), "first": round(seconds[0], 2), "LR MP/s": round(area / median, 3),
        "SR MP/s": round(area * scale**2 / median, 2), "peak MiB": peak,
    }  # fmt: skip


def plain(network: HASN, image: np.ndarray, device: str, kind: torch.dtype) -> np.ndarray:
    """H×W×3 uint8 → sH×sW×3 floats by the plain module."""
    lr = torch.from_numpy(image.transpose(2, 0, 1)[None].copy()).to(device, kind) / 255
    with torch.inference_mode():
        return network.to(device)(lr)[0].permute(1, 2, 0).cpu().double().numpy()


def plain_engine(
    network: HASN, device: str, kind: torch.dtype, *, compiled: bool = False
) -> Callable[[np.ndarray], object]:
    """The plain module from bytes to bytes, as the engine is timed."""
    copy = HASN(network.scale)
    copy.load_state_dict(network.state_dict())
    copy.to(device, kind)
    module = torch.compile(copy, dynamic=True) if compiled else copy

    def enlarge(image: np.ndarray) -> object:
        lr = torch.from_numpy(image.transpose(2, 0, 1)[None].copy()).to(device).to(kind) / 255
        with torch.no_grad():
            return (module(lr)[0] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu()

    return enlarge


def tiled(photo: np.ndarray, megapixels: float) -> np.ndarray:
    """A square of so many megapixels, from mirrored copies of a photo."""
    side = round(math.sqrt(megapixels * 1e6))
    height, width = photo.shape[:2]
    return np.pad(photo, ((0, max(0, side - height)), (0, max(0, side - width)), (0, 0)), "symmetric")[:side, :side]


def attempt(work: Callable[[], dict[str, object]], left: Clock) -> dict[str, object]:
    """What `work` returns, or why it did not: one failure must not cost the others."""
    if left() < 0:
        return {"error": "no time left"}
    try:
        return work()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


# what both need


def clock(minutes: float) -> Clock:
    end = time.monotonic() + 60 * minutes
    return lambda: end - time.monotonic()


def say(left: Clock, text: str) -> None:
    print(f"[{left():5.0f} s left] {text}", flush=True)


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"


def check_device(device: str) -> None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no CUDA card; use -d cpu to rehearse")
    print(f"{device_name(device)}, torch {torch.__version__}, {os.cpu_count()} cores", flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cores = os.cpu_count() or 1

    packing = commands.add_parser("pack", help="fill a kit of at most 60 MB")
    packing.set_defaults(run=pack)
    packing.add_argument("folders", type=Path, nargs="+", help="training pictures, in the order of their names")
    packing.add_argument("--valid", type=Path, required=True, help="validation pictures")
    packing.add_argument("--weights", type=Path, help="a folder with hasn_x2, hasn_x3 and hasn_x4.safetensors")
    packing.add_argument("-o", "--output", type=Path, required=True, help="the kit's folder")
    packing.add_argument("--megabytes", type=float, default=58, help="size of a kit (default 58)")
    packing.add_argument("--parts", type=int, default=1, help="number of kits, for several transfers (default 1)")
    packing.add_argument("--format", choices=("avif", "webp"), default="avif", help="webp is lossless")
    packing.add_argument("--quality", type=int, default=92, help="of AVIF (default 92)")
    packing.add_argument("--threads", type=int, default=cores)

    training = commands.add_parser("train", help="train for a slice")
    training.set_defaults(run=train)
    training.add_argument("-s", "--scale", type=int, choices=SCALES, nargs="+", default=list(SCALES))
    training.add_argument("--minutes", type=float, default=8, help="everything included (default 8)")
    training.add_argument("--reserve", type=float, default=20, help="seconds kept for the end (default 20)")
    training.add_argument("--rate", type=float, default=1e-3)
    training.add_argument("--end-rate", type=float, default=1e-3)
    training.add_argument("--warm-up", type=int, default=1000, help="steps (default 1000)")
    training.add_argument("--ema", type=float, default=0.999)
    training.add_argument("--batch", type=int, default=16, help="patches (default 16)")
    training.add_argument("--patch", type=int, default=64, help="side in LR pixels (default 64)")
    training.add_argument("--seed", type=int, default=0, help="another one for each slice")
    training.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    training.add_argument("--degrade", choices=("bicubic", "photo"), default="bicubic", help="as for hasn train")
    training.add_argument("--more", type=Path, nargs="*", default=[], help="other kits, for their training pictures")
    training.add_argument("--eager", dest="captured", action="store_false", help="do not record CUDA graphs")
    training.add_argument("--no-compile", dest="compile", action="store_false", help="do not compile the blocks")
    training.add_argument("--report-every", type=int, default=200, help="steps (default 200)")
    training.add_argument("--validate-every", type=int, default=2000, help="steps (default 2000)")

    measuring = commands.add_parser("measure", help="exactness and speed of inference")
    measuring.set_defaults(run=measure)
    measuring.add_argument("--minutes", type=float, default=3)
    measuring.add_argument("--side", type=int, default=192, help="of the pictures for exactness (default 192)")
    measuring.add_argument("--megapixels", type=float, nargs="+", default=[1, 4, 16], help="LR (default 1 4 16)")
    measuring.add_argument("--rounds", type=int, default=3)
    measuring.add_argument("--skip-compiled", action="store_true")

    for command in (training, measuring):
        command.add_argument("kit", type=Path)
        command.add_argument("-o", "--output", type=Path, required=True)
        command.add_argument("--from", dest="start", type=Path, help="a folder with weights")
        command.add_argument("-d", "--device", default="cuda")
        command.add_argument("--threads", type=int, default=cores)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run one of the three commands."""
    args = parse(arguments)
    args.run(args)


if __name__ == "__main__":
    main()
