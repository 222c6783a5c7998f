"""A folder of images as a data set."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from transfervae.data.dataset import ImageDataset, ItemRecord
from transfervae.data.image_file import check_image_dtype, read_image, read_pixels
from transfervae.errors import ImageFileError
from transfervae.shapes import parse_image_size

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""File names that count as images, in any case."""

NAMED_BAD_FILES = 3


class ImageFolder(ImageDataset):
    """All images in a folder and its subfolders, in the order of their paths.

    Items are RGB `[3, h, w]`, float32 in [0, 1] or uint8; `read_pixels` says how files are read, scaled and cut.

    Attributes:
        paths: The files.
        image_size: (height, width) of the items.
        dtype: Type of the items.
        bad: Files that cannot be read and were skipped, with the reason.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        image_size: int | Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        verify: bool = True,
        skip_bad: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """List the images and read each once, so that a bad file shows now and not in the middle of the training.

        Args:
            root: The folder, hidden files and folders in it passed over; or several of them, and single files.
            image_size: Height and width of the items, or one number.
            dtype: `torch.float32` for values in [0, 1], or `torch.uint8`: a quarter of the bytes, which `unit_images`
                turns into the same values.
            verify: Whether to read every file now.
            skip_bad: Leave unreadable files out instead of failing; they are listed in `bad`.
            progress: Called with (files read, files in all) while verifying.

        Raises:
            ImageFileError: If the folder is missing or holds no images, if files cannot be read (named), or if one is
                given twice.
            ImageSizeError: If `image_size` is not one or two positive numbers.
            InvalidOptionError: If `dtype` is neither of the two.
        """
        check_image_dtype(dtype)
        self.image_size = parse_image_size(image_size)
        self.dtype = dtype
        self._root = Path(root) if isinstance(root, str | os.PathLike) else None
        self._roots = [self._root] if self._root is not None else [Path(part) for part in _listed(root)]
        self.paths = find_images(Path(root)) if isinstance(root, str | os.PathLike) else _find_all(root)
        if not self.paths:
            raise ImageFileError("No images were given.")
        self.bad: dict[Path, str] = {}
        if verify:
            self.bad = _find_bad(self.paths, self.image_size, progress)
            if self.bad and not skip_bad:
                raise ImageFileError(_bad_message(self.bad))
            self.paths = [path for path in self.paths if path not in self.bad]
            if self.bad and not self.paths:
                raise ImageFileError(f"None of the {len(self.bad)} images can be read: {_bad_message(self.bad)}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Float[Tensor, "3 h w"] | UInt8[Tensor, "3 h w"]:
        read = read_pixels if self.dtype == torch.uint8 else read_image
        return read(self.paths[index], self.image_size)

    @property
    def identity(self) -> dict[str, object]:
        """What kind of data set this is, in plain values; `describe_item` tells the items."""
        return {"kind": "folder", "items": len(self)}

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the folders that the images are in, sorted; None if an image is in none, or all are in one."""
        return self._classes

    @cached_property
    def _classes(self) -> Sequence[str] | None:
        """Names of the folders that the images are in, sorted; None if an image is in none, or all are in one."""
        folders = [self._folder_of(path) for path in self.paths]
        names = sorted({name for name in folders if name is not None})
        return names if None not in folders and len(names) > 1 else None

    @property
    def labels(self) -> Sequence[int] | None:
        """The class of each image, by place in `classes`; None without classes."""
        if self.classes is None:
            return None
        places = {name: place for place, name in enumerate(self.classes)}
        return [places[str(self._folder_of(path))] for path in self.paths]

    def name_of(self, index: int) -> str:
        """Path of an item's file from the folder, or the whole path if several folders or files were given."""
        path = self.paths[index]
        return (path if self._root is None else path.relative_to(self._root)).as_posix()

    def describe_item(self, index: int) -> ItemRecord:
        """An item's name, size and time of change, without reading it.

        Args:
            index: Which item.

        Returns:
            The record; its name is the path from the folder, or the whole path if several folders or files were given.

        Raises:
            ImageFileError: If the file is gone.
            IndexError: If `index` is not within the set.
        """
        path = self.paths[index]
        try:
            status = path.stat()
        except OSError as error:
            raise ImageFileError(f"There is no image {str(path)!r} any more: {error.strerror}.") from error
        return ItemRecord(self.name_of(index), status.st_size, status.st_mtime_ns)

    def _folder_of(self, path: Path) -> str | None:
        """The first folder on the way from the root to a file."""
        for root in self._roots:
            if path.is_relative_to(root):
                parts = path.relative_to(root).parts
                return parts[0] if len(parts) > 1 else None
        return None


def find_images(root: Path) -> list[Path]:
    """Files below a folder whose names end as an image's, sorted; hidden ones are passed over.

    Raises:
        ImageFileError: If there is no such folder, or no image in it.
    """
    if root.is_file():
        raise ImageFileError(f"{str(root)!r} is a file, not a folder.")
    if not root.is_dir():
        raise ImageFileError(f"There is no folder {str(root)!r}.")
    paths = [folder / name for folder, names in _walk(root) for name in names if name.lower().endswith(SUFFIXES)]
    if not paths:
        state = "holds no images" if any(root.iterdir()) else "is empty"
        raise ImageFileError(f"The folder {str(root)!r} {state}; images are files named *{', *'.join(SUFFIXES)}.")
    return sorted(paths)


def _listed(root: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Sequence[str | os.PathLike[str]]:
    return [root] if isinstance(root, str | os.PathLike) else root


def _find_all(roots: Sequence[str | os.PathLike[str]]) -> list[Path]:
    paths = [Path(root) for root in roots]
    files = [file for path in paths for file in (find_images(path) if path.is_dir() else [path])]
    seen: set[str] = set()
    for file in files:
        real = os.path.realpath(file)
        if real in seen:
            raise ImageFileError(f"{str(file)!r} is given twice: by its name, its folder, or a link.")
        seen.add(real)
    return files


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder once, also where links lead in circles, with the files in it; hidden ones are passed over."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(folder), [name for name in names if not name.startswith(".")]


def _refuse(error: OSError) -> None:
    raise ImageFileError(f"The folder {error.filename!r} cannot be read: {error.strerror}.") from error


def _find_bad(paths: list[Path], size: tuple[int, int], progress: Callable[[int, int], None] | None) -> dict[Path, str]:
    def problem(path: Path) -> str:
        try:
            read_pixels(path, size)
        except ImageFileError as error:
            return str(error)
        return ""

    bad = {}
    with ThreadPoolExecutor() as pool:
        for done, (path, reason) in enumerate(zip(paths, pool.map(problem, paths), strict=True), start=1):
            if reason:
                bad[path] = reason
            if progress is not None:
                progress(done, len(paths))
    return bad


def _bad_message(bad: dict[Path, str]) -> str:
    reasons = list(bad.values())
    rest = f" And {len(bad) - NAMED_BAD_FILES} more." if len(bad) > NAMED_BAD_FILES else ""
    advice = "Mend or remove them, or skip bad files (skip_bad=True, --skip-bad; of runs --dataset.skip-bad)."
    return f"{' '.join(reasons[:NAMED_BAD_FILES])}{rest} {advice}"
