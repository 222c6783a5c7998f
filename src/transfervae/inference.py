"""A trained model on many images."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from transfervae.data.dataset import find_image, image_pixels
from transfervae.errors import FeatureValueError
from transfervae.files import write_atomically
from transfervae.model import TransferVAE
from transfervae.posteriors import Posterior
from transfervae.shapes import Images, unit_images

BATCH = 32

_NOT_FINITE = "The model gives values that are not finite: its weights are bad, or its precision is too low."


@torch.no_grad()
def encode_images(
    vae: TransferVAE, images: Dataset[Any], *, progress: Callable[[int], None] | None = None
) -> Posterior:
    """Encode a data set.

    Args:
        vae: The model.
        images: Items are images `[3, h, w]` of the model's size, in [0, 1] or 8 bits; or tuples or mappings that hold
            one, with labels for example.
        progress: Called with the number of images done.

    Returns:
        The posteriors of all items in order, on the CPU: Gaussians if the model's head gives such, else points.
    """
    posteriors: list[Posterior] = []
    done = 0
    for batch in _batches(images):
        posteriors.append(vae.encode(batch.to(vae.device)))
        done += len(batch)
        if progress is not None:
            progress(done)
    joined = posteriors[0].join(posteriors[1:])
    if not all(values.isfinite().all() for values in joined.moments().values()):
        raise FeatureValueError(_NOT_FINITE)
    return joined


@torch.no_grad()
def reconstruct_images(vae: TransferVAE, images: Dataset[Any]) -> tuple[Images, Images]:
    """Reconstruct a data set from the posteriors' modes.

    Args:
        vae: The model.
        images: Items are images `[3, h, w]` of the model's size, in [0, 1] or 8 bits; or tuples or mappings that hold
            one, with labels for example.

    Returns:
        The items and their reconstructions, `[n, 3, h, w]` each, on the CPU.
    """
    originals = list(_batches(images))
    reconstructions = torch.cat([vae.reconstruct(batch.to(vae.device)).cpu() for batch in originals])
    if reconstructions.isnan().any():
        raise FeatureValueError(_NOT_FINITE)
    return torch.cat(originals), reconstructions


def write_latents(path: str | os.PathLike[str], paths: Sequence[str | os.PathLike[str]], posterior: Posterior) -> None:
    """Write posteriors as an .npz: arrays `paths`, `mean`, and for Gaussians `logvar` (natural log of the variance).

    Args:
        path: The file.
        paths: Where the images came from.
        posterior: Theirs, in the same order.

    Raises:
        FileWriteError: If the file cannot be written.
    """
    buffer = io.BytesIO()
    names = np.array([str(entry) for entry in paths])
    moments: dict[str, Any] = {name: values.numpy() for name, values in posterior.moments().items()}
    np.savez(buffer, paths=names, **moments)
    write_atomically(Path(path), buffer.getvalue())


def _batches(images: Dataset[Any]) -> Iterator[Images]:
    return iter(DataLoader(_UnitImages(images), batch_size=BATCH))


class _UnitImages(Dataset[Tensor]):
    """The images in a data set's items, in [0, 1]; floating point ones as they are."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor:
        image = find_image(self._items[index])
        if isinstance(image, Tensor) and image.is_floating_point():
            return image
        return unit_images(image_pixels(image).unsqueeze(0))[0]
