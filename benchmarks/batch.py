"""Measures the time that a batch takes beyond the network's, and whether its memory stays constant.

    python benchmarks/batch.py throughput --pictures 200     whole run ÷ the network alone, JPEG photos of 0.1 MP, x4
    python benchmarks/batch.py memory --pictures 10000       resident memory from the 10th picture to the last

The photos are different crops of those in `examples/`. The network alone and the whole run take turns in blocks, and
alternate in which is first, so that a change in the machine's speed affects both.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from hasn_cli.batch import Done, Failed, Settings, UpscalerPool, run_batch
from hasn_cli.batch.jobs import Job, find_jobs
from hasn_cli.enlarge import Size

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PHOTO = (365, 274)  # width, height: 0.1 megapixels


def make_photos(folder: Path, count: int) -> None:
    """Write this many different JPEG photos."""
    folder.mkdir(parents=True)
    originals = [Image.open(path).convert("RGB").resize(PHOTO) for path in sorted(EXAMPLES.glob("*.jpg"))]
    for number in range(count):
        pixels = np.roll(np.asarray(originals[number % len(originals)]), number, axis=1)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)


Seconds = np.ndarray  # wall time, processor time


def now() -> Seconds:
    """Wall time, and this process's processor time, which other programs do not disturb."""
    return np.array([time.perf_counter(), time.process_time()])


def network_alone(pool: UpscalerPool, jobs: list[Job], scale: int) -> Seconds:
    """Seconds for the pictures of `jobs`, decoded beforehand.

    It runs in a thread, as in a batch: the first network in the main thread turned out to be a sixth slower.
    """
    upscaler = pool.loaded(scale)
    images = [np.asarray(Image.open(job.source)) for job in jobs]

    def work() -> Seconds:
        began = now()
        for image in images:
            upscaler.upscale(image)
        return now() - began

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def whole_run(jobs: list[Job], settings: Settings) -> Seconds:
    """Seconds from files to files, including the time to load the network."""
    began = now()
    for event in run_batch(jobs, settings, on_exists="overwrite"):
        if isinstance(event, Failed):
            raise event.error
    return now() - began


def throughput(pictures: int, block: int, scale: int, device: str) -> dict[str, object]:
    """Measure the whole run's time divided by the network's."""
    settings = Settings(size=Size(factor=scale), device=device)
    pool = UpscalerPool(settings)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_photos(folder / "in", pictures)
        jobs = find_jobs([folder / "in"], folder / "out")
        network_alone(pool, jobs[:2], scale), whole_run(jobs[:2], settings)  # warm up up
        alone, whole = [], []
        for start in range(0, pictures, block):
            part = jobs[start : start + block]
            if start // block % 2:
                whole.append(whole_run(part, settings))
            alone.append(network_alone(pool, part, scale))
            if not start // block % 2:
                whole.append(whole_run(part, settings))
    ratios = [one[0] / other[0] for one, other in zip(whole, alone, strict=True)]
    (whole_wall, whole_cpu), (alone_wall, alone_cpu) = sum(whole), sum(alone)
    return {
        "pictures": pictures,
        "ratio": whole_wall / alone_wall,
        "ratio_median_of_blocks": statistics.median(ratios),
        "ratio_of_each_block": [round(ratio, 3) for ratio in ratios],
        "ratio_of_processor_time": whole_cpu / alone_cpu,
        "network_seconds": alone_wall,
        "whole_seconds": whole_wall,
        "megapixels_per_second": pictures * PHOTO[0] * PHOTO[1] / 1e6 / whole_wall,
    }


def memory(pictures: int, side: int) -> dict[str, object]:
    """Measure resident memory while pictures of side × side pixels are processed."""
    process, used = psutil.Process(), {}
    marks = sorted({10, 100, 300, 1000, 3000, pictures} - {n for n in (100, 300, 1000, 3000) if n > pictures})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        encoded = io.BytesIO()
        Image.effect_noise((side, side), 80).convert("RGB").save(encoded, "PNG")
        (folder / "in/0.png").write_bytes(encoded.getvalue())
        for number in range(1, pictures):
            os.link(folder / "in/0.png", folder / f"in/{number}.png")
        done = 0
        for event in run_batch(find_jobs([folder / "in"], folder / "out"), Settings(size=Size(factor=2))):
            done += isinstance(event, Done)
            if isinstance(event, Done) and done in marks:
                used[done] = round(process.memory_info().rss / 2**20, 1)
    return {"pictures": pictures, "MiB": used, "growth_MiB": round(used[pictures] - used[10], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("throughput", "memory"))
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--block", type=int, default=50, help="pictures between two turns (throughput)")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--side", type=int, default=16, help="of the pictures (memory)")
    given = parser.parse_args()
    if given.what == "throughput":
        result = throughput(given.pictures or 200, given.block, given.scale, given.device)
    else:
        result = memory(given.pictures or 10_000, given.side)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
