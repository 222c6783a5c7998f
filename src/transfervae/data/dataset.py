"""Any data set as images of 8 bits and one size."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from transfervae.data.image_file import fit_image, to_pixels
from transfervae.errors import InvalidImageError, InvalidOptionError
from transfervae.shapes import check_image_range

IMAGE_KEYS = ("image", "img", "pixel_values")
"""Keys of an image in an item that is a mapping; without them, its only value that is an image is taken."""

LABEL_KEYS = ("label", "labels", "target", "class")

PROBED = 64
"""Number of items that are hashed to tell a data set without files from others."""

RANDOM = "random"
"""Stands for the checksum of a data set that transforms its images at random."""


class ItemRecord(NamedTuple):
    """Identifies an item and its state without reading it.

    Attributes:
        name: Its name within the data set; of a file in a folder, the path from there, with `/`.
        size: Bytes of the file, 0 for what is no file.
        modified: When the file was last changed, in nanoseconds since 1970, 0 for what is no file.
    """

    name: str
    size: int
    modified: int


class ImageDataset(Dataset[Tensor]):
    """Base of the data sets that runs and caches use: `ImageFolder`, `ToyFaces`, and the wrappers of `open_dataset`.

    Items are images `[3, h, w]`, uint8 in runs and caches.

    Attributes:
        image_size: (height, width) of the items.
        bad: Files that cannot be read and were skipped, with the reason.
    """

    image_size: tuple[int, int]
    bad: Mapping[Path, str] = MappingProxyType({})

    def __len__(self) -> int:
        """Number of images."""
        raise NotImplementedError

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes; None without labels."""
        return None

    @property
    def labels(self) -> Sequence[int] | None:
        """The class of each image, by place in `classes`; None without labels."""
        return None

    @property
    def identity(self) -> Mapping[str, object]:
        """Plain values that identify the data set."""
        raise NotImplementedError

    @property
    def is_random(self) -> bool:
        """Whether an item is another image whenever it is read."""
        return False

    @property
    def is_told_by_pixels(self) -> bool:
        """Whether `identity` has nothing better than the pixels of some items to tell the data set from others."""
        return False

    def name_of(self, index: int) -> str:
        """Name of an item for people: a file's path within its folder, or its place."""
        return f"item {index}"


class WrappedImages(ImageDataset):
    """Images of a data set that knows nothing of this library, as uint8 `[3, h, w]` of one size.

    Images of another size are scaled and centre-cut as files are; gray ones become RGB.

    Attributes:
        image_size: (height, width) of the items.
        source: The data set itself.
    """

    def __init__(self, source: Any, image_size: tuple[int, int]) -> None:
        """Wrap a data set.

        Args:
            source: A map-style data set, a tensor, or an array, of images.
            image_size: (height, width) of the items.

        Raises:
            InvalidOptionError: If it is no map-style data set, is empty, or its first item holds no image.
        """
        if isinstance(source, IterableDataset) or not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
            raise InvalidOptionError(
                f"data must be a folder, a tensor or array [n, 3, h, w], or a map-style data set, got"
                f" {type(source).__name__}."
            )
        if len(source) == 0:
            raise InvalidOptionError("The data set holds no images.")
        self.source = source
        self.image_size = image_size
        find_image(source[0])

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        try:
            return image_pixels(find_image(self.source[index]), self.image_size)
        except (InvalidOptionError, InvalidImageError) as error:
            raise type(error)(f"{self.name_of(index)}: {error}") from error

    @property
    def identity(self) -> Mapping[str, object]:
        """Class, number of items, and a checksum over the pixels of some of them."""
        return {"kind": type(self.source).__name__, "items": len(self), "content": self._content}

    @property
    def is_random(self) -> bool:
        """Whether the data set transforms its images at random, as far as some of them show."""
        return self._content == RANDOM

    @property
    def is_told_by_pixels(self) -> bool:
        """True."""
        return True

    @cached_property
    def _content(self) -> str:
        """A checksum over the pixels of some items: a data set without files has no name of its own.

        The pixels of a data set that transforms its images at random tell nothing, and are marked as random.
        """
        rows = sorted({place * (len(self) - 1) // (PROBED - 1) for place in range(PROBED)})
        first, second = (_checksum(self, rows) for _ in range(2))
        return f"{first:08x}" if first == second else RANDOM

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes, if the data set has some."""
        names = getattr(self.source, "classes", None)
        if names is None:
            label = next((key for key in LABEL_KEYS if key in _columns(self.source)), None)
            names = getattr(self.source.features[label], "names", None) if label else None
        if names is None and self.labels is not None:
            names = [str(label) for label in range(max(self.labels) + 1)]
        return None if names is None else [str(name) for name in names]

    @property
    def labels(self) -> Sequence[int] | None:
        """The class of each image, by place in `classes`; None without labels."""
        return self._labels

    @cached_property
    def _labels(self) -> Sequence[int] | None:
        """The class of each image; images are only read for them if the data set does not tell them otherwise."""
        for name in ("targets", "labels"):
            values = getattr(self.source, name, None)
            if values is not None and len(values) == len(self):
                return _whole_labels(values)
        for key in LABEL_KEYS:
            if key in _columns(self.source):
                return _whole_labels(self.source[key])
        if label_of(self.source[0]) is None:
            return None
        return _whole_labels([label_of(self.source[index]) for index in range(len(self))])


class SelectedImages(ImageDataset):
    """Some of the images of a data set.

    Attributes:
        source: The data set.
        indices: Places in it.
        image_size: (height, width) of the items.
    """

    dtype = torch.uint8

    def __init__(self, source: ImageDataset, indices: Sequence[int]) -> None:
        """Select images.

        Args:
            source: The data set, in 8 bits.
            indices: Places in it.
        """
        self.source = source
        self.indices = list(indices)
        self.image_size = source.image_size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        return self.source[self.indices[index]]

    @property
    def classes(self) -> Sequence[str] | None:
        """Those of the data set."""
        return self.source.classes

    @property
    def labels(self) -> Sequence[int] | None:
        """The class of each image."""
        labels = self.source.labels
        return None if labels is None else [labels[index] for index in self.indices]

    @property
    def identity(self) -> Mapping[str, object]:
        """That of the data set, and the places."""
        return {"source": dict(self.source.identity), "indices": self.indices}

    def name_of(self, index: int) -> str:
        """Name of an item for people."""
        return self.source.name_of(self.indices[index])


class JoinedImages(ImageDataset):
    """Training images followed by validation images, as one data set.

    Attributes:
        parts: The two data sets.
        image_size: (height, width) of the items.
    """

    def __init__(self, training: ImageDataset, val: ImageDataset) -> None:
        """Join two data sets.

        Args:
            training: Images to learn from.
            val: Images held out.
        """
        self.parts = (training, val)
        self.image_size = training.image_size
        self.bad = {**training.bad, **val.bad}

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> Tensor:
        part, place = self._find(index)
        return part[place]

    @property
    def classes(self) -> Sequence[str] | None:
        """The classes of both, if they are the same."""
        training, val = (part.classes for part in self.parts)
        return training if training == val else None

    @property
    def labels(self) -> Sequence[int] | None:
        """The class of each image, if both have the same classes."""
        training, val = (part.labels for part in self.parts)
        return None if self.classes is None or training is None or val is None else [*training, *val]

    @property
    def identity(self) -> Mapping[str, object]:
        """The identities of both."""
        return {"training": dict(self.parts[0].identity), "val": dict(self.parts[1].identity)}

    @property
    def is_random(self) -> bool:
        """Whether one of the parts is."""
        return any(part.is_random for part in self.parts)

    @property
    def is_told_by_pixels(self) -> bool:
        """Whether one of the parts is."""
        return any(part.is_told_by_pixels for part in self.parts)

    def describe_item(self, index: int) -> ItemRecord:
        """An item's name, size and time of change; a checksum of its pixels where it is no file."""
        part, place = self._find(index)
        describe: Callable[[int], ItemRecord] | None = getattr(part, "describe_item", None)
        record = describe(place) if describe else content_record(part.name_of(place), part[place])
        return record._replace(name=f"{'training' if part is self.parts[0] else 'val'}/{record.name}")

    def name_of(self, index: int) -> str:
        """Name of an item for people."""
        part, place = self._find(index)
        return part.name_of(place)

    def _find(self, index: int) -> tuple[ImageDataset, int]:
        first = len(self.parts[0])
        return (self.parts[0], index) if index < first else (self.parts[1], index - first)


def content_record(name: str, pixels: Tensor) -> ItemRecord:
    """The record of an item without a file: a checksum of its pixels."""
    return ItemRecord(name, pixels.numel(), zlib.crc32(pixels.contiguous().numpy().tobytes()))


def find_image(item: Any) -> Any:
    """The image in an item: the item itself, the first entry of a tuple, or a mapping's value.

    Raises:
        InvalidOptionError: If there is none.
    """
    if isinstance(item, tuple | list) and item:
        item = item[0]
    if isinstance(item, Mapping):
        key = next((key for key in IMAGE_KEYS if key in item), None)
        found = [value for value in item.values() if _is_image(value)] if key is None else [item[key]]
        if len(found) != 1:
            raise InvalidOptionError(
                f"An item that is a mapping must hold its image as {', '.join(IMAGE_KEYS)}, or as its only image; got"
                f" the keys {', '.join(map(str, item))}."
            )
        item = found[0]
    if not _is_image(item):
        raise InvalidOptionError(
            f"Items must be images (tensor, array or Pillow image), tuples that begin with one, or mappings that hold"
            f" one; got {type(item).__name__}."
        )
    return item


def _whole_labels(values: Sequence[Any]) -> list[int] | None:
    """Labels as places of classes; None unless all are whole numbers from 0: -1 often means that there is no label."""
    labels = []
    for value in values:
        if not isinstance(value, int | np.integer | Tensor) or value != int(value) or value < 0:
            return None
        labels.append(int(value))
    return labels


def label_of(item: Any) -> int | None:
    """The label in an item: a tuple's second entry, or a mapping's, if it is a whole number."""
    label: Any = None
    if isinstance(item, tuple | list) and len(item) > 1:
        label = item[1]
    elif isinstance(item, Mapping):
        label = next((item[key] for key in LABEL_KEYS if key in item), None)
    if isinstance(label, Tensor | np.ndarray | np.generic):
        label = label.item() if label.ndim == 0 else None
    return label if isinstance(label, int) and not isinstance(label, bool) else None


def image_pixels(image: Any, image_size: tuple[int, int] | None = None) -> Tensor:
    """An image as uint8 RGB `[3, h, w]`.

    Args:
        image: A tensor `[3, h, w]`, `[1, h, w]` or `[h, w]`; an array in these shapes or with channels last; uint8, or
            floating point in [0, 1], which is rounded to 8 bits; or a Pillow image.
        image_size: (height, width) that it is scaled and centre-cut to; its own if None.

    Raises:
        InvalidOptionError: If it has other axes or channels.
        InvalidImageError: If it is neither uint8 nor floating point in [0, 1].
    """
    if isinstance(image, Image.Image):
        return to_pixels(fit_image(image, image_size))
    values = torch.as_tensor(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    pixels = _to_uint8(_to_rgb_planes(values))
    if image_size is None or tuple(pixels.shape[1:]) == image_size:
        return pixels
    return to_pixels(fit_image(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()), image_size))


def _to_rgb_planes(image: Tensor) -> Tensor:
    if image.ndim == 2:
        image = image.unsqueeze(0)
    if image.ndim == 3 and image.shape[0] not in {1, 3} and image.shape[-1] in {1, 3}:
        image = image.permute(2, 0, 1)
    if image.ndim != 3 or image.shape[0] not in {1, 3}:
        raise InvalidOptionError(f"Items must be images [3, h, w], got {list(image.shape)}.")
    return image.expand(3, -1, -1)


def _to_uint8(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image.contiguous()
    if not image.is_floating_point():
        raise InvalidImageError(f"Images must be uint8, or floating point in [0, 1], got {image.dtype}.")
    check_image_range(image.unsqueeze(0))
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def _is_image(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, Tensor | np.ndarray) and value.ndim in {2, 3})


def _columns(source: Any) -> Sequence[str]:
    """Columns of a Hugging Face data set, whose labels can be had without reading images."""
    features = getattr(source, "features", None)
    return list(features) if isinstance(features, Mapping) else []


def _checksum(images: WrappedImages, rows: Sequence[int]) -> int:
    value = 0
    for row in rows:
        value = zlib.crc32(images[row].numpy().tobytes(), value)
    return value
