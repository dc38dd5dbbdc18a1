#!/usr/bin/env bash
# The same batch on a Dask cluster (pip install ".[cluster]"). Without an address, it uses two workers on this machine.
# For a real cluster, run `dask scheduler` on one machine and `dask worker tcp://HOST:8786` on the others, with hasn
# installed on each.
#
#     examples/cluster.sh photos/ larger/ tcp://scheduler:8786
set -euo pipefail
in=${1:?usage: cluster.sh IN OUT [ADDRESS]} out=${2:?usage: cluster.sh IN OUT [ADDRESS]}

hasn upscale "$in" --recursive --scale 2 --output "$out/" --resume --cluster "${3:-local:2}"
