"""Opening what a user gives as data."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transfervae.data.dataset import ImageDataset, WrappedImages
from transfervae.data.folder import ImageFolder
from transfervae.errors import InvalidOptionError
from transfervae.shapes import parse_image_size


def open_dataset(
    data: Any,
    image_size: int | str | Sequence[int],
    *,
    verify: bool = True,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ImageDataset:
    """Open images in any form, as uint8 `[3, h, w]` of one size.

    Args:
        data: A folder, or several folders and files; a tensor or array `[n, 3, h, w]`, uint8 or floating point in
            [0, 1]; or any map-style data set whose items are images (tensors, arrays, Pillow images), tuples that begin
            with one, or mappings that hold one: as those of torchvision and of Hugging Face do.
        image_size: Height and width of the items.
        verify: Of folders, read every file now, so that a bad one shows.
        skip_bad: Of folders, leave unreadable files out; they are listed in `bad`.
        progress: Of folders, called with (files read, files in all).

    Returns:
        The images.

    Raises:
        ImageFileError: If a folder is missing or empty, or holds files that cannot be read.
        InvalidOptionError: If the data is none of these, or empty.
    """
    size = parse_image_size(image_size)
    if isinstance(data, str | os.PathLike) or _is_list_of_paths(data):
        return ImageFolder(data, size, dtype=torch.uint8, verify=verify, skip_bad=skip_bad, progress=progress)
    if isinstance(data, ImageDataset) and data.image_size == size and getattr(data, "dtype", None) == torch.uint8:
        return data
    if isinstance(data, Tensor | np.ndarray) and data.ndim != 4:
        raise InvalidOptionError(f"A tensor or array of images must be [n, 3, h, w], got {list(data.shape)}.")
    return WrappedImages(data, size)


def _is_list_of_paths(data: Any) -> bool:
    return isinstance(data, list | tuple) and bool(data) and all(isinstance(part, str | os.PathLike) for part in data)
