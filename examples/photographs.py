"""Photographs that come with scikit-image and Matplotlib: pieces to learn from, and whole ones that are held out.

    pip install scikit-image
    python examples/photographs.py FOLDER

FOLDER/pieces gets square pieces of several scales, FOLDER/held other photographs. All of them are free to use: see the
notes beside `skimage.data` and Matplotlib's sample data.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image
from skimage import data

PIECES = ("astronaut", "coffee", "rocket", "hubble_deep_field", "retina", "immunohistochemistry")
HELD = "chelsea"
COUNT = 2000
SIDE = 64


def main() -> None:
    """Write them."""
    root = Path(sys.argv[1])
    pieces, held = root / "pieces", root / "held"
    for folder in (pieces, held):
        folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    photographs = [Image.fromarray(getattr(data, name)()) for name in PIECES]
    photographs += [Image.fromarray(view) for view in data.stereo_motorcycle()[:1]]
    for number in range(COUNT):
        photograph = photographs[number % len(photographs)]
        side = int(min(photograph.size) * generator.uniform(0.15, 1) ** 2)
        side = max(SIDE, side)
        left, top = (generator.integers(0, length - side + 1) for length in photograph.size)
        box = (left, top, left + side, top + side)
        photograph.crop(box).resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(pieces / f"{number:04d}.png")
    Image.fromarray(getattr(data, HELD)()).save(held / f"{HELD}.png")
    with Image.open(Path(mpl.get_data_path(), "sample_data", "grace_hopper.jpg")) as portrait:
        portrait.save(held / "grace_hopper.png")


if __name__ == "__main__":
    main()
