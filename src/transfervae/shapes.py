"""Shape types, and the checks at the library's boundary.

Boundary functions take a plain `Tensor` and check it themselves, so that a wrong one gets a message that says what to
do; everything inside is annotated with the types below.
"""

from collections.abc import Sequence
from typing import TypeAlias, TypeGuard

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from transfervae.errors import ImageSizeError, InvalidImageError, InvalidOptionError

Images: TypeAlias = Float[Tensor, "b 3 h w"]
Pixels: TypeAlias = UInt8[Tensor, "b 3 h w"]
Features: TypeAlias = Float[Tensor, "b c grid_h grid_w"]
Latents: TypeAlias = Float[Tensor, "b *latent"]
PerItem: TypeAlias = Float[Tensor, " b"]
Scalar: TypeAlias = Float[Tensor, ""]

LARGEST = torch.finfo(torch.float32).max

RANGE_TOLERANCE = 1e-2
"""How far outside [0, 1] an image value may lie: rounding of half precision, but no normalisation."""


def check_image_tensor(images: Tensor) -> Images:
    """Check type and axes of a batch of images; nothing on the device is waited for.

    Args:
        images: Should be floating point RGB, `[b, 3, h, w]`.

    Returns:
        The same tensor.

    Raises:
        InvalidImageError: For integers, other than four axes, no image, or other than three channels.
    """
    if isinstance(images, Tensor) and not images.is_floating_point():
        raise InvalidImageError(
            f"Images must be floating point RGB in [0, 1], got {images.dtype};"
            " use images.float() / 255 for 8-bit images."
        )
    return _check_axes(images)


def check_image_range(images: Images) -> None:
    """Check that the values lie in [0, 1]; on an accelerator this waits for the device.

    Args:
        images: Floating point RGB, `[b, 3, h, w]`.

    Raises:
        InvalidImageError: For values outside [0, 1] by more than a rounding error, or not finite.
    """
    low, high = (value.item() for value in torch.aminmax(images.detach()))
    if low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE:
        return
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise InvalidImageError("Images hold values that are not finite (NaN or infinity).")
    if low < -RANGE_TOLERANCE:
        advice = "normalisation happens inside the backbone, so pass images as they are, in [0, 1]"
    else:
        advice = "divide 8-bit values by 255"
    raise InvalidImageError(
        f"Images must lie in [0, 1], got values from {low:.3g} to {high:.3g}; {advice}"
        " (or images.clamp(0, 1) after a resampling overshoot)."
    )


def unit_images(pixels: Tensor) -> Images:
    """Scale 8-bit RGB to [0, 1], on the device where it is: a quarter of the bytes to move there.

    Args:
        pixels: Uint8 RGB, `[b, 3, h, w]`.

    Returns:
        Float32 `[b, 3, h, w]` in [0, 1]: the values divided by 255.

    Raises:
        InvalidImageError: For any other type, other than four axes, no image, or other than three channels.
    """
    if isinstance(pixels, Tensor) and pixels.dtype != torch.uint8:
        raise InvalidImageError(
            f"Pixels must be uint8 RGB from 0 to 255, got {pixels.dtype}; floating point images in [0, 1] are used as"
            " they are."
        )
    return _check_axes(pixels).float().div_(255)


def parse_image_size(size: int | str | Sequence[int]) -> tuple[int, int]:
    """Read an image size as (height, width).

    Args:
        size: One number for square images, or (height, width), in pixels; or the same as text, "128" or "96x128".

    Returns:
        Height and width.

    Raises:
        ImageSizeError: For anything else, or a side below 1.
    """
    given: object = _sides_of(size) if isinstance(size, str) else size
    sides = tuple(given) if isinstance(given, Sequence) else (given, given)
    if len(sides) != 2 or not all(_is_whole(side) and side >= 1 for side in sides):
        raise ImageSizeError(f"An image size is one positive number or (height, width), got {size!r}.")
    height, width = sides
    return int(height), int(width)


def at_least_float32(values: Tensor) -> Tensor:
    """The tensor itself, or in float32 if its own precision is lower."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_positive(*, at_most: int | None = None, **options: object) -> None:
    """Check that the named options are whole numbers, at least 1 and at most a limit.

    Raises:
        InvalidOptionError: Naming the first that is not.
    """
    for name, value in options.items():
        if not _is_whole(value) or value < 1:
            raise InvalidOptionError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if at_most is not None and value > at_most:
            raise InvalidOptionError(f"{name} must be at most {at_most}, got {value}.")


def check_nonnegative(**options: object) -> None:
    """Check that each option is a number of at least 0, and finite in single precision.

    Raises:
        InvalidOptionError: Naming the first that is not.
    """
    for name, value in options.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= LARGEST:
            raise InvalidOptionError(f"{name} must be at least 0 and finite, got {value!r}.")


def check_share(**options: object) -> None:
    """Check that each option is a number in [0, 1).

    Raises:
        InvalidOptionError: Naming the first that is not.
    """
    for name, value in options.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            raise InvalidOptionError(f"{name} must be at least 0 and below 1, got {value!r}.")


def check_seed(seed: object) -> None:
    """Check that a seed is one that torch takes.

    Raises:
        InvalidOptionError: If it is no whole number, negative, or 2^63 or more.
    """
    if not _is_whole(seed) or not 0 <= seed < 2**63:
        raise InvalidOptionError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed!r}.")


def _sides_of(text: str) -> int | list[int] | str:
    """The numbers in "128" or "96x128"; the text itself if it is neither."""
    parts = [part.strip() for part in text.lower().split("x")]
    if not all(part.isdecimal() for part in parts):
        return text
    sides = [int(part) for part in parts]
    return sides[0] if len(sides) == 1 else sides


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_axes(images: Tensor) -> Tensor:
    if not isinstance(images, Tensor):
        raise InvalidImageError(f"Images must be a tensor [b, 3, h, w], got {type(images).__name__}.")
    if images.ndim != 4:
        raise InvalidImageError(
            f"Images must be [b, 3, h, w], got shape {list(images.shape)}; add the batch axis with images.unsqueeze(0)."
        )
    if images.shape[1] != 3:
        raise InvalidImageError(_channel_message(images))
    if images.shape[0] == 0:
        raise InvalidImageError("The batch holds no image (its first axis is 0).")
    return images


def _channel_message(images: Tensor) -> str:
    channels = images.shape[1]
    advice = ""
    if channels == 1:
        advice = "; for grayscale use images.expand(-1, 3, -1, -1)"
    elif channels == 4:
        advice = "; composite the alpha channel first"
    elif images.shape[-1] == 3:
        advice = "; the channels are last, use images.permute(0, 3, 1, 2)"
    return f"Images must have 3 channels (RGB) on axis 1, got {channels}{advice}."
