"""The Python API: enlarge a path, a Pillow image or an array; for many pictures, use one `Upscaler`.

python examples/api.py photo.jpg
"""

import sys

import numpy as np
from PIL import Image

from hasn_cli import Upscaler, load_network, upscale

path = sys.argv[1]

# one picture: a path gives a Pillow image
large = upscale(path, scale=4)
large.save("large.png")

# an H×W×C array gives an array of the same type
array = np.asarray(Image.open(path).convert("RGB"))
assert upscale(array, scale=2).shape == (2 * array.shape[0], 2 * array.shape[1], 3)

# many pictures: the network is loaded once; `plan` says in advance how a picture will be computed
upscaler = Upscaler(load_network("hasn", 2), device="auto", memory=2 << 30)
print(upscaler.plan(array.shape[:2]))
for turned in (array, array[:, ::-1]):
    result = upscaler.upscale(turned, progress=lambda fraction: print(f"\r{100 * fraction:3.0f} %", end=""))
    print(f" {result.shape[1]}×{result.shape[0]}")
