#!/usr/bin/env bash
# GNU parallel distributes a folder, twenty pictures at a time, and gives each process a GPU of its own (JOBS is the
# number of GPUs). On a CPU, a single hasn is just as fast, because it uses all cores.
#
#     JOBS=4 examples/parallel.sh photos/ larger/
set -euo pipefail
in=${1:?usage: parallel.sh IN OUT}
export out=${2:?usage: parallel.sh IN OUT}

find "$in" -maxdepth 1 -type f \( -iname '*.jpg' -o -iname '*.jpeg' -o -iname '*.png' -o -iname '*.webp' \) -print0 |
    parallel --null --max-args 20 --jobs "${JOBS:-2}" \
        'CUDA_VISIBLE_DEVICES=$(({%} - 1)) hasn upscale {} --scale 2 --output "$out"/ --resume'
