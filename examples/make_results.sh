#!/usr/bin/env bash
# Makes the pictures in examples/results/ again. Run it when the weights have changed.
set -euo pipefail
cd "$(dirname "$0")"

hasn upscale camera.jpg forest.jpg --suffix _x4 --quality 90 --output results/ --overwrite --no-journal
hasn upscale flower.png page.png --suffix _x4 --format webp --quality 90 --output results/ --overwrite --no-journal
hasn compare camera.jpg --output results/camera_compare.png --overwrite
