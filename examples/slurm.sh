#!/usr/bin/env bash
#SBATCH --job-name=hasn
#SBATCH --array=0-7
#SBATCH --cpus-per-task=8
#SBATCH --mem=8G
#SBATCH --time=04:00:00
# Eight tasks of a Slurm array, each with every eighth picture. Submit it again and each task continues.
#
#     sbatch examples/slurm.sh photos/ larger/
set -euo pipefail
in=${1:?usage: slurm.sh IN OUT} out=${2:?usage: slurm.sh IN OUT}

find "$in" -maxdepth 1 -type f \( -iname '*.jpg' -o -iname '*.jpeg' -o -iname '*.png' -o -iname '*.webp' \) | sort |
    awk -v task="${SLURM_ARRAY_TASK_ID:-0}" -v tasks="${SLURM_ARRAY_TASK_COUNT:-1}" 'NR % tasks == task' |
    hasn upscale --files-from - --scale 2 --output "$out/" --resume
