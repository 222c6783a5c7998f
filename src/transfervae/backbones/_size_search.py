"""Which image sizes near a given one a network takes, found by asking it."""

from collections.abc import Callable, Sequence
from itertools import islice, product

MULTIPLES = (7, 8, 14, 16, 32, 48)
"""What networks ask the sides of an image to be multiples of."""


def nearest_sizes(
    size: tuple[int, int],
    takes: Callable[[tuple[int, int]], bool],
    *,
    native: tuple[int, int] | None,
    tries: int,
) -> list[tuple[int, int]]:
    """Up to two sizes that a network takes, nearest first.

    Args:
        size: (height, width) that it does not take.
        takes: Asks the network.
        native: The size that it was trained at, tried last.
        tries: How many others are tried for each multiple that networks ask for.
    """
    nearest = {candidate for multiple in MULTIPLES for candidate in _round(size, multiple)[:tries]} - {size}
    candidates = sorted(nearest, key=lambda other: (_distance(size, other), other))
    return list(islice(filter(takes, dict.fromkeys(candidates + ([native] if native else []))), 2))


def name_sizes(sizes: Sequence[tuple[int, int]]) -> str:
    """Sizes in words, such as "224x224, 96x128"; "none" if there is none."""
    return ", ".join(f"{height}x{width}" for height, width in sizes) or "none"


def _round(size: tuple[int, int], multiple: int) -> list[tuple[int, int]]:
    """Sizes near the given one whose sides are multiples, squares among them, nearest first."""
    heights, widths = ({(side // multiple + up) * multiple for up in (-1, 0, 1, 2)} for side in size)
    sizes = {*product(heights, widths), *((side, side) for side in heights | widths)}
    return sorted((s for s in sizes if min(s) > 0), key=lambda other: (_distance(size, other), other))


def _distance(size: tuple[int, int], other: tuple[int, int]) -> int:
    return abs(size[0] - other[0]) + abs(size[1] - other[1])
