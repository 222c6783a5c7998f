"""Pieces of the photographs that come with scikit-image and Matplotlib, to learn from and to be judged on.

    pip install scikit-image
    python examples/photographs.py FOLDER

FOLDER/pieces gets square pieces of several scales, FOLDER/held pieces of other photographs. All are free to use:
see the notes beside `skimage.data` and Matplotlib's sample data.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image
from skimage import data

LEARNT = ("astronaut", "coffee", "rocket", "hubble_deep_field", "retina", "immunohistochemistry")
COUNT, HELD_COUNT = 2000, 8
SMALLEST = 0.15
SIDE = 64


def main() -> None:
    """Write them."""
    root = Path(sys.argv[1])
    learnt = [Image.fromarray(getattr(data, name)()) for name in LEARNT]
    learnt.append(Image.fromarray(data.stereo_motorcycle()[0]))
    with Image.open(Path(mpl.get_data_path(), "sample_data", "grace_hopper.jpg")) as portrait:
        held = [portrait.copy(), Image.fromarray(data.chelsea())]
    write_pieces(root / "pieces", learnt, COUNT, smallest=SMALLEST)
    write_pieces(root / "held", held, HELD_COUNT, smallest=0.5)


def write_pieces(folder: Path, photographs: Sequence[Image.Image], count: int, *, smallest: float) -> None:
    """Cut squares at random, from a share of the shorter side to all of it, small ones more often."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        side = max(SIDE, int(min(photograph.size) * generator.uniform(smallest**0.5, 1) ** 2))
        left, top = (int(generator.integers(0, length - side + 1)) for length in photograph.size)
        piece = photograph.crop((left, top, left + side, top + side))
        piece.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(folder / f"{number:04d}.png")


if __name__ == "__main__":
    main()
