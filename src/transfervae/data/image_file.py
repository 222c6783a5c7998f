"""One image file, read right: orientation, depth, palette, alpha and colour space."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from transfervae.errors import ImageFileError
from transfervae.shapes import parse_image_size

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for files that are damaged or no images."""


def read_image(path: str | os.PathLike[str], image_size: int | Sequence[int] | None = None) -> Float[Tensor, "3 h w"]:
    """Read an image as RGB in [0, 1].

    EXIF orientation is applied, 16-bit values are rescaled, palettes, grayscale and CMYK are converted, and
    transparency is composited on white. Of animations, the first frame is taken.

    Args:
        path: JPEG, PNG, WebP, TIFF, BMP, or whatever else Pillow reads.
        image_size: If given, the image is scaled, with antialiasing, until its shorter side (relative to this size)
            fits, and the centre is cut out: nothing is squashed.

    Returns:
        Float32 `[3, h, w]` in [0, 1].

    Raises:
        ImageFileError: If the file is missing, empty, truncated, or no image; it is named.
    """
    image = _open(Path(path))
    if image_size is not None:
        height, width = parse_image_size(image_size)
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return to_tensor(image)


def to_tensor(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """An RGB picture as float32 `[3, h, w]` in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _open(path: Path) -> Image.Image:
    if path.exists() and not path.is_file():
        raise ImageFileError(f"{str(path)!r} is no file.")
    if path.exists() and path.stat().st_size == 0:
        raise ImageFileError(f"{str(path)!r} is empty (0 bytes).")
    try:
        with Image.open(path) as file:
            return _to_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise ImageFileError(f"There is no image {str(path)!r}.") from None
    except UnidentifiedImageError:
        raise ImageFileError(f"{str(path)!r} is no image that can be read.") from None
    except UNREADABLE as error:
        raise ImageFileError(f"{str(path)!r} cannot be read: {str(error).rstrip('.')}.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _to_eight_bits(image)
    elif image.mode == "F":
        raise ValueError("its pixels are floating point, which have no known range")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Rescale 16-bit gray, which Pillow would cut off at white."""
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
