"""JPEG files that cost as much to read as photographs do: large shapes with fine detail on them."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (500, 375)
COARSE = (10, 8)
DETAIL = 12.0
QUALITY = 90


def write_photographs(folder: Path, count: int) -> None:
    """Write so many JPEG files of 500x375 pixels.

    Args:
        folder: Made if missing.
        count: How many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        coarse = generator.integers(0, 256, (COARSE[1], COARSE[0], 3), dtype=np.uint8)
        shapes = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC), dtype=np.float32)
        detail = generator.normal(0, DETAIL, shapes.shape[:2])[..., None]
        pixels = (shapes + detail).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:04d}.jpg", quality=QUALITY)
