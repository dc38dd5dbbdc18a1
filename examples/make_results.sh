#!/usr/bin/env bash
# Makes the pictures in examples/results/ again. Run it when the weights have changed.
set -euo pipefail
cd "$(dirname "$0")"

hasn upscale camera.jpg forest.jpg --suffix _x4 --quality 90 --output results/ --overwrite --no-journal
hasn upscale flower.png page.png --suffix _x4 --format webp --quality 90 --output results/ --overwrite --no-journal
hasn compare camera.jpg --output results/camera_compare.png --overwrite

# The clean weights beside those that hasn chooses: for a JPEG of quality 60, and for text and lines on a screen.
made=$(mktemp -d)
trap 'rm -r "$made"' EXIT
python - "$made" <<'PYTHON'
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

folder = Path(sys.argv[1])
Image.open("flower.png").convert("RGB").save(folder / "flower_jpeg.jpg", quality=60)
screen = Image.new("RGB", (170, 100), (30, 30, 30))
draw, font = ImageDraw.Draw(screen), ImageFont.load_default(13)
for row, (text, colour) in enumerate([("# a comment", "#6a9955"), ("def area(self):", "#dcdcaa"), ("return 12.5", "#c586c0")]):
    draw.text((6 + 12 * (row == 2), 4 + 18 * row), text, colour, font)
draw.line((6, 66, 164, 92), "#a0a0a0")
draw.line((6, 80, 164, 80), "#d16969")
draw.ellipse((120, 6, 160, 46), outline="#9cdcfe")
screen.save(folder / "screen.png")
PYTHON
for picture in flower_jpeg.jpg screen.png; do
    hasn compare "$made/$picture" -w clean -w hasn --output "results/${picture%.*}_compare.png" --overwrite
done
