#!/usr/bin/env bash
# A whole tree of pictures at twice the size, kept as a tree. Killed or interrupted, it goes on when started again;
# one broken picture is named and does not stop the others.
#
#     examples/folder.sh holiday/ larger/
set -euo pipefail
in=${1:?usage: folder.sh IN OUT} out=${2:?usage: folder.sh IN OUT}

hasn upscale "$in" --recursive --scale 2 --output "$out/" --resume
