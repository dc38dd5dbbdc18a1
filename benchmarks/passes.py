"""What two passes of the network give beyond x4, beside one pass at x4 and bicubic interpolation for the rest.

    python benchmarks/passes.py HR_FOLDER/ -s 8

Each HR picture is cropped to a multiple of the scale and reduced by MATLAB's bicubic; PSNR-Y and SSIM-Y leave out a
border as wide as the scale.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hasn_cli.enlarge import PASSES
from hasn_cli.evaluation.metrics import psnr_y, ssim_y
from hasn_cli.inference import Upscaler
from hasn_cli.resize import resize
from hasn_cli.weights import load_network

Pixels = NDArray[np.uint8]


def main() -> None:
    """Print the mean over the folder for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-s", "--scale", type=int, default=8, choices=[scale for scale in PASSES if scale > 4])
    given = parser.parse_args()
    upscalers = {scale: Upscaler(load_network("hasn", scale), device="cpu") for scale in {*PASSES[given.scale], 4}}
    ways: dict[str, tuple[int, ...]] = {"bicubic": (), "x4, then bicubic": (4,)}
    for order in dict.fromkeys([PASSES[given.scale], PASSES[given.scale][::-1]]):
        ways[", then ".join(f"x{scale}" for scale in order)] = order
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for path in sorted(given.folder.glob("*.png")):
        truth = _cropped(np.asarray(Image.open(path).convert("RGB")), given.scale)
        size = (truth.shape[0], truth.shape[1])
        small = resize(truth, size=(size[0] // given.scale, size[1] // given.scale))
        for name, order in ways.items():
            large = small
            for scale in order:
                large = upscalers[scale].upscale(large)
            large = large if large.shape == truth.shape else resize(large, size=size)
            scores[name].append((psnr_y(large, truth, given.scale), ssim_y(large, truth, given.scale)))
    for name, values in scores.items():
        psnr, ssim = np.mean(values, axis=0)
        print(f"{name:18}  {psnr:6.2f} dB  {ssim:.4f}  ({len(values)} pictures)")


def _cropped(pixels: Pixels, multiple: int) -> Pixels:
    height, width = (side // multiple * multiple for side in pixels.shape[:2])
    return pixels[:height, :width]


if __name__ == "__main__":
    main()
