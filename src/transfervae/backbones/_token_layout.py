"""How a layer lays its features out, and how to make a map with channels first of it."""

import math
from dataclasses import dataclass, replace
from itertools import product
from operator import itemgetter
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from transfervae.errors import ShapeError
from transfervae.shapes import Features

MOST_PREFIX_TOKENS = 16
EXACT = 1e-6
"""Up to which difference a grid has the very ratio of the image: rounding of floats."""


@dataclass(frozen=True)
class TokenLayout:
    """What a layer's output does not say of itself; None where it is not known.

    Attributes:
        channels_last: Whether a map has its channels last.
        prefix_tokens: Number of tokens before those of the grid.
        cell: Side of the piece of image that a token stands for, in pixels.
        is_certain: Whether it was seen by experiment: then it decides alone.
    """

    channels_last: bool | None = None
    prefix_tokens: int | None = None
    cell: float | None = None
    is_certain: bool = False

    @staticmethod
    def declared_by(network: nn.Module) -> "TokenLayout":
        """What a network tells in the attributes that timm's have, `output_fmt` and `num_prefix_tokens`."""
        last = getattr(network, "output_fmt", None) == "NHWC"
        prefix = getattr(network, "num_prefix_tokens", None)
        return TokenLayout(last, prefix if isinstance(prefix, int) else None)

    def observed(self, output: Any, wider: Any, taller: Any, *, image_size: tuple[int, int]) -> "TokenLayout":
        """The layout that three outputs show, or this one where they leave it open.

        Args:
            output: For an image.
            wider: For one twice as wide.
            taller: For one twice as high.
            image_size: (height, width) of the first.
        """
        shapes = [tuple(values.shape) if isinstance(values, Tensor) else () for values in (output, wider, taller)]
        if len({len(shape) for shape in shapes}) == 1 and len(shapes[0]) == 4:
            changed = [[axis for axis in (1, 2, 3) if shapes[0][axis] != shape[axis]] for shape in shapes[1:]]
            if changed in ([[3], [2]], [[2], [1]]):
                return replace(self, channels_last=changed[0] == [2], is_certain=True)
        if len({len(shape) for shape in shapes}) == 1 and len(shapes[0]) == 3:
            count, *more = (shape[1] for shape in shapes)
            cells = {other - count for other in more}  # what doubling a side adds, if no rounding is in it
            if len(cells) == 1 and 0 <= (prefix := count - (added := cells.pop())) <= MOST_PREFIX_TOKENS and added:
                cell = math.sqrt(math.prod(image_size) / added)
                return replace(self, prefix_tokens=prefix, cell=cell, is_certain=True)
        return self


def as_map(output: Any, image_size: tuple[int, int], *, layout: TokenLayout, node: str) -> Features:
    """Bring a layer's output to channels first, `[b, c, h, w]`.

    Args:
        output: A map with channels first or last, or tokens `[b, n, c]`.
        image_size: (height, width) of the images; where the layout is not certain, their ratio tells the grid.
        layout: What is known.
        node: For the message.

    Raises:
        ShapeError: If the output is neither.
    """
    if isinstance(output, Tensor) and output.ndim == 4:
        return _channels_first(output, image_size, layout)
    if isinstance(output, Tensor) and output.ndim == 3:
        cut = _token_grid(output.shape[1], image_size, layout)
        if cut is not None:
            prefix, height, width = cut
            return rearrange(output[:, prefix:], "b (h w) c -> b c h w", h=height, w=width)
    given = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ShapeError(f"{node} gives no map of features: its output is {given}, for images {list(image_size)}.")


def _channels_first(output: Tensor, image_size: tuple[int, int], layout: TokenLayout) -> Tensor:
    first_misfit, last_misfit = (
        abs(math.log(height / width * image_size[1] / image_size[0])) if height and width else math.inf
        for height, width in (output.shape[2:4], output.shape[1:3])
    )
    is_open = layout.is_certain or math.isclose(first_misfit, last_misfit)
    is_last = layout.channels_last if is_open else last_misfit < first_misfit
    return rearrange(output, "b h w c -> b c h w") if is_last else output


def _token_grid(count: int, image_size: tuple[int, int], layout: TokenLayout) -> tuple[int, int, int] | None:
    """Number of prefix tokens and the grid of the others: of the image's ratio of sides, if need be up to rounding."""
    if layout.cell is not None and layout.prefix_tokens is not None:
        heights, widths = ((math.floor(side / layout.cell), math.ceil(side / layout.cell)) for side in image_size)
        for height, width in product(heights, widths):
            if height * width == count - layout.prefix_tokens:
                return layout.prefix_tokens, height, width
    ratio = image_size[0] / image_size[1]
    fits = []
    known = layout.prefix_tokens
    tried = range(MOST_PREFIX_TOKENS + 1) if known is None else (known,) if layout.is_certain else (known, 0)
    for prefix in tried:
        cells = count - prefix
        height = round(math.sqrt(cells * ratio)) if cells > 0 else 0
        if height and cells % height == 0 and (misfit := abs(cells / height * ratio - height)) < 1:
            fits.append((misfit > EXACT, (prefix, height, cells // height)))
    return min(fits, key=itemgetter(0))[1] if fits else None
