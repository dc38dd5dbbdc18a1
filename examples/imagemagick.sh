#!/usr/bin/env bash
# A pipeline: ImageMagick cuts out the middle third, hasn enlarges it, and ImageMagick adds a border.
#
#     examples/imagemagick.sh photo.jpg detail.png
set -euo pipefail
in=${1:?usage: imagemagick.sh IN OUT.png} out=${2:?usage: imagemagick.sh IN OUT.png}
if command -v magick > /dev/null; then tool=magick; else tool=convert; fi # version 7 or version 6

"$tool" "$in" -auto-orient -gravity center -crop '33.3%x33.3%+0+0' +repage png:- |
    hasn upscale - --scale 3 --output - --quiet |
    "$tool" - -bordercolor white -border 24 "$out"
