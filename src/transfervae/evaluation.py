"""How good a model is on held-out images: figures that add up exactly over batches and processes."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torchmetrics import Metric

from transfervae.losses import rmse
from transfervae.model import TransferVAE, VAEOutput
from transfervae.shapes import Images

ACTIVE_VARIANCE = 0.01
"""A latent dimension is active if the variance of its mean over the data is above this (Burda et al. 2016)."""


class HeldOutMetrics(Metric):
    """RMSE, KL and active units over a data set, as sums that merge exactly over batches and processes."""

    count: Tensor
    rmse_sum: Tensor
    kl_sum: Tensor
    mean_sum: Tensor
    square_sum: Tensor

    def __init__(self, latent_size: int, *, sync_on_compute: bool = True) -> None:
        """Start empty.

        Args:
            latent_size: Number of values in one latent.
            sync_on_compute: Merge the sums of all processes, which must all ask for the figures then.
        """
        super().__init__(sync_on_compute=sync_on_compute)
        for name in ("count", "rmse_sum", "kl_sum"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("mean_sum", "square_sum"):
            self.add_state(name, torch.zeros(latent_size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, output: VAEOutput, images: Images) -> None:
        """Add one batch.

        Args:
            output: What the model gave, in evaluation mode.
            images: The images, `[b, 3, h, w]` in [0, 1].
        """
        means = output.posterior.mean.flatten(1).double()
        self.count += len(images)
        self.rmse_sum += rmse(output.reconstruction, images).double().sum()
        self.kl_sum += output.posterior.kl().double().sum()
        self.mean_sum += means.sum(dim=0)
        self.square_sum += means.square().sum(dim=0)

    def compute(self) -> dict[str, Tensor]:
        """RMSE (mean over images), KL in nats (mean over images), and the number of active units."""
        variance = self.square_sum / self.count - (self.mean_sum / self.count).square()
        return {
            "rmse": self.rmse_sum / self.count,
            "kl": self.kl_sum / self.count,
            "active_units": (variance > ACTIVE_VARIANCE).sum(),
        }


@torch.no_grad()
def evaluate(vae: TransferVAE, batches: Iterable[Tensor]) -> dict[str, float]:
    """The figures of a model over images in this process, with no autocast and no cached features.

    Args:
        vae: The model; it is put into evaluation mode.
        batches: Images, `[b, 3, h, w]` in [0, 1].

    Returns:
        "rmse" and "kl" (nats), means over the images, and "active_units".
    """
    vae.eval()
    metrics = HeldOutMetrics(math.prod(vae.latent_shape), sync_on_compute=False).to(vae.device)
    for images in batches:
        on_device = images.to(vae.device)
        metrics.update(vae(on_device), on_device)
    return {name: value.item() for name, value in metrics.compute().items()}


def mean_image_rmse(training: Iterable[Tensor], held_out: Iterable[Tensor]) -> float:
    """RMSE of predicting the mean training image for every held-out image: what a model has to beat.

    Args:
        training: Batches of images, `[b, 3, h, w]` in [0, 1].
        held_out: Batches of images, `[b, 3, h, w]` in [0, 1].

    Returns:
        Mean over the held-out images, in [0, 1].
    """
    total, count = torch.zeros(()), 0
    for images in training:
        total = total + images.double().sum(dim=0)
        count += len(images)
    mean = (total / count).float()
    errors = torch.cat([rmse(mean.expand_as(images), images) for images in held_out])
    return errors.mean().item()
