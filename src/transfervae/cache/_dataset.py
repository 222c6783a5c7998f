"""The images that a cache is made of: read, checked, and told from others."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from transfervae.data import ItemRecord
from transfervae.data.dataset import content_record, find_image, image_pixels
from transfervae.errors import InvalidOptionError

PROBES = 8
"""Number of items that are read `READINGS` times to see whether they are always the same."""

READINGS = 3


@runtime_checkable
class CacheableData(Protocol):
    """What a data set needs to be cached: its items never change. `ImageFolder` and `ToyFaces` meet it.

    Items are `[3, h, w]`, uint8, or floating point in [0, 1], which is rounded to 8 bits.
    """

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> Any:
        """One image, or what holds one."""


class RowPixels(NamedTuple):
    """Images and their rows in the cache.

    Attributes:
        rows: `[b]`, int64.
        pixels: `[b, 3, h, w]`, uint8.
    """

    rows: Tensor
    pixels: Tensor


def pixel_loader(
    dataset: CacheableData, batches: Sequence[Sequence[int]], *, workers: int = 0
) -> DataLoader[RowPixels]:
    """Images of given rows in given batches, with their rows."""
    return DataLoader(
        _PixelBatches(dataset, batches), batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available()
    )


def check_repeatable(dataset: CacheableData) -> tuple[int, int]:
    """Make sure that a data set's images are the same whenever they are read, by reading some of them several times.

    Returns:
        Their height and width.

    Raises:
        InvalidOptionError: If they are not, or there are none, or they have several sizes.
        InvalidImageError: If they are no images.
    """
    probes = probe_rows(len(dataset))
    if not probes:
        raise InvalidOptionError("There are no images to cache.")
    first = [as_pixels(dataset[i]) for i in probes]
    if len({tuple(pixels.shape) for pixels in first}) > 1:
        raise InvalidOptionError("Images must all have one size to be cached; the data set gives several.")
    for _ in range(PROBES * READINGS // len(probes) - 1):
        if any(not torch.equal(pixels, as_pixels(dataset[i])) for i, pixels in zip(probes, first, strict=True)):
            raise InvalidOptionError(
                "The images differ from one reading to the next: the data set transforms them at random, and a cache"
                " would freeze one draw. Leave the random transforms out; mirrored images can be cached with flips."
            )
    height, width = first[0].shape[-2:]
    return height, width


def probe_rows(count: int) -> list[int]:
    """Some rows of so many, spread evenly."""
    return sorted({i * (count - 1) // (PROBES - 1) for i in range(PROBES)}) if count else []


def identify_data(dataset: CacheableData) -> dict[str, Any]:
    """What a data set says of itself; its class for one that says nothing."""
    identity: dict[str, Any] | None = getattr(dataset, "identity", None)
    return {"kind": type(dataset).__name__} if identity is None else dict(identity)


def has_files(dataset: CacheableData) -> bool:
    """Whether a data set can tell what an item was made of without reading it."""
    return hasattr(dataset, "describe_item")


def describe_item(dataset: CacheableData, row: int, pixels: Tensor | None = None) -> ItemRecord:
    """Name, size and time of change of an item's file; for a data set without files, a checksum of its pixels.

    Args:
        dataset: The images.
        row: Which one.
        pixels: The image, if it was read before.
    """
    describe: Callable[[int], ItemRecord] | None = getattr(dataset, "describe_item", None)
    if describe is not None:
        return describe(row)
    return content_record(f"item {row}", as_pixels(dataset[row]) if pixels is None else pixels)


def as_pixels(item: object) -> Tensor:
    """The image in an item as uint8 RGB `[3, h, w]`; floating point ones in [0, 1] are rounded.

    Raises:
        InvalidOptionError: If the item holds no image.
        InvalidImageError: If it is neither uint8 nor floating point in [0, 1].
    """
    return image_pixels(find_image(item))


class _PixelBatches(Dataset[RowPixels]):
    """Whole batches as items: the engine does not take an order of batches as it is."""

    def __init__(self, dataset: CacheableData, batches: Sequence[Sequence[int]]) -> None:
        self._dataset = dataset
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> RowPixels:
        rows = self._batches[index]
        images = [as_pixels(self._dataset[row]) for row in rows]
        for row, image in zip(rows, images, strict=True):
            if image.shape != images[0].shape:
                sizes = f"item {row} is {list(image.shape)}, item {rows[0]} {list(images[0].shape)}"
                raise InvalidOptionError(f"Images must all have one size to be cached: {sizes}.")
        return RowPixels(torch.tensor(rows), torch.stack(images))
