"""What decoders share: the latent's shape, and the grids on the way from it to the image."""

import math
from collections.abc import Sequence
from typing import TypeAlias

from einops.layers.torch import Rearrange
from torch import Tensor, nn

from transfervae.errors import ShapeError

LARGEST_START_GRID = 8

Size: TypeAlias = tuple[int, int]


def parse_latent_shape(latent_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple.

    Raises:
        ShapeError: If it is neither (d,) nor (c, h, w).
    """
    shape = tuple(latent_shape)
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise ShapeError(f"latent_shape must be (d,) or (c, h, w), each at least 1, got {shape}.")
    return shape


def check_latents(latents: Tensor, latent_shape: tuple[int, ...]) -> None:
    """Check that a batch is of a decoder's latents.

    Raises:
        ShapeError: If its items have another shape.
    """
    if tuple(latents.shape[1:]) != latent_shape:
        raise ShapeError(
            f"The decoder was built for latents [b, {', '.join(map(str, latent_shape))}], got {list(latents.shape)}."
        )


def grid_sizes(latent_shape: tuple[int, ...], image_size: Size) -> list[Size]:
    """The grids from the stem's to the image's, each half of the next, rounded up."""
    grid = latent_shape[1:] or (LARGEST_START_GRID, LARGEST_START_GRID)
    ratio = max(side / cells for side, cells in zip(image_size, grid, strict=True))
    rounding = math.ceil if len(latent_shape) == 1 else round
    return halved_sizes(image_size, max(0, rounding(math.log2(ratio))))


def halved_sizes(image_size: Size, times: int) -> list[Size]:
    """The image's size, and what so many halvings give, smallest first; an odd side is rounded up."""
    height, width = image_size
    return [(-(-height >> done), -(-width >> done)) for done in range(times, -1, -1)]


def make_stem(latent_shape: tuple[int, ...], channels: int, size: Size) -> nn.Module:
    """From the latent to the first grid: a linear layer for vectors, resizing and a convolution for maps."""
    if len(latent_shape) == 1:
        height, width = size
        return nn.Sequential(
            nn.Linear(latent_shape[0], channels * height * width),
            Rearrange("b (c h w) -> b c h w", h=height, w=width),
        )
    return make_resize(latent_shape[0], channels, size)


def make_resize(before: int, after: int, size: Size) -> nn.Module:
    """Nearest-neighbour resizing and a 3x3 convolution."""
    return nn.Sequential(nn.Upsample(size=size, mode="nearest"), nn.Conv2d(before, after, kernel_size=3, padding=1))
