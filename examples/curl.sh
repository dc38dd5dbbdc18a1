#!/usr/bin/env bash
# Downloads a picture, enlarges it and writes it to a file. Only the result is written to the disk.
#
#     examples/curl.sh https://example.org/photo.jpg large.png
set -euo pipefail
url=${1:?usage: curl.sh URL OUT.png} out=${2:?usage: curl.sh URL OUT.png}

curl --fail --silent --show-error --location "$url" | hasn upscale - --output - --format png --quiet > "$out"
