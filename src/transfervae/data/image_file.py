"""One image file, read right: orientation, depth, palette, alpha and colour space."""

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from transfervae.errors import ImageFileError, InvalidOptionError
from transfervae.shapes import parse_image_size

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for files that are damaged or no images."""

DRAFT_MARGIN = 2
"""A large JPEG is decoded at a fraction of its size, but at no less than this many times the size asked for."""

UPRIGHT: Mapping[int, Transpose] = MappingProxyType(
    {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
)
"""What makes an EXIF orientation upright."""

SIDEWAYS = frozenset({Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90})
"""Those that swap height and width."""


def read_image(path: str | os.PathLike[str], image_size: int | Sequence[int] | None = None) -> Float[Tensor, "3 h w"]:
    """Read an image as RGB in [0, 1].

    Args:
        path: As for `read_pixels`.
        image_size: As for `read_pixels`.

    Returns:
        Float32 `[3, h, w]` in [0, 1]: the values of `read_pixels`, divided by 255.

    Raises:
        ImageFileError: If the file is missing, empty, truncated, or no image; it is named.
        ImageSizeError: If `image_size` is not one or two positive numbers.
    """
    return read_pixels(path, image_size).float().div_(255)


def read_pixels(path: str | os.PathLike[str], image_size: int | Sequence[int] | None = None) -> UInt8[Tensor, "3 h w"]:
    """Read an image as 8-bit RGB.

    EXIF orientation is applied, 16-bit values are rescaled, palettes, grayscale and CMYK are converted, and
    transparency is composited on white. Of animations, the first frame is taken.

    Args:
        path: JPEG, PNG, WebP, TIFF, BMP, or whatever else Pillow reads.
        image_size: If given, the image is scaled, with antialiasing, until its shorter side (relative to this size)
            fits, and the centre is cut out: nothing is squashed. Of a JPEG with at least four times this height and
            width, the decoder itself leaves out detail that is lost anyway, which is several times faster.

    Returns:
        Uint8 `[3, h, w]`.

    Raises:
        ImageFileError: If the file is missing, empty, truncated, or no image; it is named.
        ImageSizeError: If `image_size` is not one or two positive numbers.
    """
    size = None if image_size is None else parse_image_size(image_size)
    return _read(Path(path), size)


def to_tensor(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """An RGB picture as float32 `[3, h, w]` in [0, 1]."""
    return to_pixels(image).float().div_(255)


def to_pixels(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """An RGB picture as uint8 `[3, h, w]`."""
    planes = bytearray().join(channel.tobytes() for channel in image.split())
    return torch.frombuffer(planes, dtype=torch.uint8).view(3, image.height, image.width)


def fit_image(image: Image.Image, image_size: tuple[int, int] | None) -> Image.Image:
    """A Pillow image in RGB, scaled and centre-cut to a (height, width) as files are; its own size if None."""
    rgb = _to_rgb(image)
    return rgb if image_size is None else _fit(rgb, rgb.size, (image_size[1], image_size[0]))


def check_image_dtype(dtype: torch.dtype) -> None:
    """Check that images can be had in a type.

    Raises:
        InvalidOptionError: If it is neither float32 nor uint8.
    """
    if dtype not in {torch.float32, torch.uint8}:
        raise InvalidOptionError(
            "dtype must be torch.float32 (RGB in [0, 1]) or torch.uint8 (RGB from 0 to 255), got"
            f" {dtype!r}; for half precision, convert batches or use autocast."
        )


def _read(path: Path, size: tuple[int, int] | None) -> UInt8[Tensor, "3 h w"]:
    try:
        _check_file(path)
        with Image.open(path) as file:
            return to_pixels(_decode(file, size))
    except ImageFileError:
        raise
    except FileNotFoundError:
        raise ImageFileError(f"There is no image {str(path)!r}.") from None
    except UnidentifiedImageError:
        raise ImageFileError(f"{str(path)!r} is no image that can be read.") from None
    except UNREADABLE as error:
        raise ImageFileError(f"{str(path)!r} cannot be read: {str(error).rstrip('.')}.") from error


def _check_file(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
        raise ImageFileError(f"{str(path)!r} is no file.")
    if status.st_size == 0:
        raise ImageFileError(f"{str(path)!r} is empty (0 bytes).")


def _decode(file: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """The picture in RGB, upright, of a (height, width); turned last, when the fewest pixels are left to turn."""
    extent = _draft(file, size) if size is not None and isinstance(file, JpegImageFile) else None
    file.load()
    turn = _turn_of(file)
    image = _to_rgb(file)
    if size is not None:
        image = _fit(image, extent or image.size, _stored_size(size, turn))
    return image if turn is None else image.transpose(turn)


def _draft(file: JpegImageFile, size: tuple[int, int]) -> tuple[float, float] | None:
    """Have the decoder shrink a large picture; its (width, height) then, whose fractions are padded, or None."""
    width, height = _stored_size(size, _turn_of(file))
    drafted = file.draft(None, (DRAFT_MARGIN * width, DRAFT_MARGIN * height))
    return None if drafted is None else drafted[1][2:]


def _turn_of(file: Image.Image) -> Transpose | None:
    return UPRIGHT.get(file.getexif().get(ExifTags.Base.Orientation, 1))


def _stored_size(size: tuple[int, int], turn: Transpose | None) -> tuple[int, int]:
    """The (width, height) before turning of what is to have a (height, width)."""
    height, width = size
    return (height, width) if turn in SIDEWAYS else (width, height)


def _fit(image: Image.Image, extent: tuple[float, float], size: tuple[int, int]) -> Image.Image:
    """Scale to cover a (width, height), and cut out the centre."""
    if image.size == size:
        return image
    scale = min(extent[0] / size[0], extent[1] / size[1])
    left, top = (max(0.0, (side - scale * wanted) / 2) for side, wanted in zip(extent, size, strict=True))
    return image.resize(size, Image.Resampling.BICUBIC, box=(left, top, extent[0] - left, extent[1] - top))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _to_eight_bits(image)
    elif image.mode == "F":
        raise ValueError("its pixels are floating point, which have no known range")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Rescale 16-bit gray, which Pillow would cut off at white."""
    values = np.asarray(image).astype(np.float64)
    # Pillow gives 16-bit PNG and PGM as 32-bit integers too; in a TIFF these are what they say.
    if image.mode == "I" and (image.format == "TIFF" or values.min() < 0 or values.max() > 65535):
        raise ValueError("its pixels are 32-bit or signed integers, which have no known range")
    return Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
