"""A trained model on many images."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from transfervae.checkpoint import write_atomically
from transfervae.gaussian import DiagonalGaussian
from transfervae.model import TransferVAE
from transfervae.posterior import PointPosterior, Posterior
from transfervae.shapes import Images

BATCH = 32


@torch.no_grad()
def encode_images(
    vae: TransferVAE, images: Dataset[Tensor], *, progress: Callable[[int], None] | None = None
) -> Posterior:
    """Encode a data set.

    Args:
        vae: The model.
        images: Items `[3, h, w]` in [0, 1], of the model's size.
        progress: Called with the number of images done.

    Returns:
        The posteriors of all items in order, on the CPU: Gaussians if the model's head gives such, else points.
    """
    posteriors = []
    done = 0
    for batch in _batches(images):
        posteriors.append(vae.encode(batch.to(vae.device)))
        done += len(batch)
        if progress is not None:
            progress(done)
    return _join(posteriors)


@torch.no_grad()
def reconstruct_images(vae: TransferVAE, images: Dataset[Tensor]) -> tuple[Images, Images]:
    """Reconstruct a data set from the posteriors' modes.

    Args:
        vae: The model.
        images: Items `[3, h, w]` in [0, 1], of the model's size.

    Returns:
        The items and their reconstructions, `[n, 3, h, w]` each, on the CPU.
    """
    originals = list(_batches(images))
    reconstructions = [vae.reconstruct(batch.to(vae.device)).cpu() for batch in originals]
    return torch.cat(originals), torch.cat(reconstructions)


def write_latents(path: Path, paths: Sequence[Path], posterior: Posterior) -> None:
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
    moments: dict[str, Any] = {"mean": posterior.mean.numpy()}
    if isinstance(posterior, DiagonalGaussian):
        moments["logvar"] = posterior.logvar.numpy()
    np.savez(buffer, paths=names, **moments)
    write_atomically(path, buffer.getvalue())


def _join(posteriors: Sequence[Posterior]) -> Posterior:
    means = torch.cat([posterior.mean.cpu() for posterior in posteriors])
    logvars = [posterior.logvar.cpu() for posterior in posteriors if isinstance(posterior, DiagonalGaussian)]
    return DiagonalGaussian(means, torch.cat(logvars)) if logvars else PointPosterior(means)


def _batches(images: Dataset[Tensor]) -> Iterator[Images]:
    return iter(DataLoader(images, batch_size=BATCH))
