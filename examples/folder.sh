#!/usr/bin/env bash
# Enlarges a folder of pictures with its subfolders to twice the size. If it is interrupted, start it again and it
# continues. A broken picture is named and does not stop the others.
#
#     examples/folder.sh holiday/ larger/
set -euo pipefail
in=${1:?usage: folder.sh IN OUT} out=${2:?usage: folder.sh IN OUT}

hasn upscale "$in" --recursive --scale 2 --output "$out/" --resume
