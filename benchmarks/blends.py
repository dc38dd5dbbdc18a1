"""How good each blend of the clean and photo weights is for each kind of file. `hasn_cli/choice.py` follows the result.

    python benchmarks/blends.py PICTURES/ -s 4 --side 384
    python benchmarks/blends.py PICTURES/ -s 2 --only video


PICTURES are large pictures that were not trained on. Each is reduced, saved as the row says, and enlarged by every
blend. Prints PSNR-Y in dB, the mean over the pictures: one row for each kind of file, one column for each share of the
photo weights in eighths, the best one in bold, and the share that `-w hasn` takes.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

import av
import numpy as np
from PIL import Image

from hasn_cli.choice import EIGHTHS, GRAPHIC_SHARE, LOSSLESS_SHARE, OTHER_SHARE, choose_for_video, photo_share
from hasn_cli.evaluation.benchmark import whole_multiple
from hasn_cli.evaluation.metrics import psnr_y
from hasn_cli.evaluation.pictures import list_pictures, read_rgb
from hasn_cli.images.compression import Compression
from hasn_cli.inference import Upscaler
from hasn_cli.resize import resize
from hasn_cli.training.degrade import box_average
from hasn_cli.training.graphics import graphic
from hasn_cli.video.clip import probe
from hasn_cli.video.still import still
from hasn_cli.weights import load_blend

Pixels = np.ndarray
QUALITIES = (100, 98, 97, 95, 94, 92, 90, 85, 80, 75, 70, 60, 50, 40, 30)
GRAPHICS = 24
FILMS = (
    ("libx264", 12),
    ("libx264", 18),
    ("libx264", 23),
    ("libx264", 28),
    ("libx264", 34),
    ("libx265", 28),
    ("libsvtav1", 35),
)
FILM_FRAMES, FILM_SAMPLES = 16, (5, 10)
BORDER = 4


def saved(lr: Pixels, format: str, **options: int) -> Pixels:
    """H×W×3 as a program reads it from a file of this format."""
    file = io.BytesIO()
    Image.fromarray(lr).save(file, format, **options)
    return np.asarray(Image.open(file).convert("RGB"))


def reduced(hr: Pixels, scale: int, method: str) -> Pixels:
    """HR made smaller: by MATLAB's bicubic, the box average, or one of Pillow's filters."""
    if method == "bicubic":
        return resize(hr, scale=1 / scale)
    if method == "box":
        return box_average(hr, scale)
    size = (hr.shape[1] // scale, hr.shape[0] // scale)
    return np.asarray(Image.fromarray(hr).resize(size, Image.Resampling[method.upper()]))


def filmed(hr: Pixels, scale: int, codec: str, options: dict[str, str]) -> tuple[int, list[tuple[Pixels, Pixels]]]:
    """A video in which a camera moves over a picture: the share that is chosen, and pairs of LR and HR frames."""
    step, side = 2 * scale, min(hr.shape[:2]) - FILM_FRAMES * 2 * scale
    side -= side % (2 * scale)  # H.264 needs even sides
    large = [hr[step * i : step * i + side, step * i : step * i + side] for i in range(FILM_FRAMES)]
    path = Path(tempfile.mkdtemp()) / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = large[0].shape[0] // scale, large[0].shape[1] // scale
        stream.pix_fmt = "yuv420p"
        stream.codec_context.options = options | ({"x265-params": "log-level=error"} if codec == "libx265" else {})
        for number, frame in enumerate(large):
            small = av.VideoFrame.from_ndarray(np.ascontiguousarray(reduced(frame, scale, "bicubic")), "rgb24")
            small = small.reformat(format="yuv420p", dst_colorspace="smpte170m", interpolation="BICUBIC")
            small.pts = number
            container.mux(stream.encode(small))
        container.mux(stream.encode(None))
    pairs = [(next(iter(still(path, seconds=i / 25).frames)).pixels, large[i]) for i in FILM_SAMPLES]
    return choose_for_video(probe(path).compression).photo, pairs


def cases(pictures: list[Pixels], scale: int) -> dict[str, tuple[int, list[tuple[Pixels, Pixels]]]]:
    """Kind of file → the share that is chosen for it, and its pairs of LR and HR."""
    found = {}
    for method in ("bicubic", "lanczos", "bilinear", "box"):
        found[f"lossless, {method}"] = LOSSLESS_SHARE, [(reduced(hr, scale, method), hr) for hr in pictures]
    drawn = [graphic(96, scale, np.random.default_rng(seed)) for seed in range(GRAPHICS)]
    found["lossless graphics"] = GRAPHIC_SHARE, drawn
    clean = [(reduced(hr, scale, "bicubic"), hr) for hr in pictures]

    def add(name: str, share: int, format: str, **options: int) -> None:
        found[name] = share, [(saved(lr, format, **options), hr) for lr, hr in clean]

    for code, sampling in ((0, "4:4:4"), (2, "4:2:0")):
        for quality in QUALITIES:
            share = photo_share(Compression("JPEG", quality, sampling))
            add(f"JPEG {quality}, {sampling}", share, "JPEG", quality=quality, subsampling=code)
    for codec, crf in FILMS:
        films = [filmed(hr, scale, codec, {"crf": str(crf)}) for hr in pictures]
        share = round(float(np.mean([share for share, _ in films])))
        found[f"video, {codec} {crf}"] = share, [pair for _, pairs in films for pair in pairs]
    for format, quality in (("WEBP", 90), ("WEBP", 75), ("AVIF", 80), ("AVIF", 60)):
        add(f"{format} {quality}", OTHER_SHARE, format, quality=quality)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("-s", "--scale", type=int, choices=(2, 3, 4), default=4)
    parser.add_argument("--side", type=int, default=384, help="use the middle of each picture, so many pixels wide")
    parser.add_argument("--photo", default="photo", help="photo weights: a name or a file")
    parser.add_argument("--only", default="", help="only the kinds of file whose names begin like this")
    args = parser.parse_args()
    pictures = []
    for path in list_pictures(args.pictures, lambda path, why: print(f"left out {path}: {why}")):
        whole = read_rgb(path)
        top, left = (max(0, (length - args.side) // 2) for length in whole.shape[:2])
        pictures.append(whole_multiple(whole[top : top + args.side, left : left + args.side], args.scale))
    networks = [load_blend(args.scale, share / EIGHTHS, args.photo) for share in range(EIGHTHS + 1)]
    blends = [Upscaler(network, device="cpu") for network in networks]
    print(f"| ×{args.scale} | bicubic | " + " | ".join(f"{share}/8" for share in range(EIGHTHS + 1)) + " | chosen |")
    print("|---" * (EIGHTHS + 4) + "|")
    for name, (chosen, pairs) in cases(pictures, args.scale).items():
        if not name.startswith(args.only):
            continue
        plain = np.mean([psnr_y(resize(lr, scale=args.scale), hr, BORDER) for lr, hr in pairs])
        values = [np.mean([psnr_y(by.upscale(lr), hr, BORDER) for lr, hr in pairs]) for by in blends]
        shown = [f"**{value:.2f}**" if value == max(values) else f"{value:.2f}" for value in values]
        print(f"| {name} | {plain:.2f} | {' | '.join(shown)} | {chosen}/8 |", flush=True)


if __name__ == "__main__":
    main()
