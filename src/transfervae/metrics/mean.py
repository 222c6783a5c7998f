"""The mean over images of one value each."""

from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric

from transfervae.model import VAEOutput
from transfervae.shapes import Images, PerItem


class MeanOverImages(Metric):
    """A metric that is a mean over images; subclasses say of what."""

    is_differentiable = False
    count: Tensor
    total: Tensor

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        for name in ("count", "total"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @abstractmethod
    def values(self, output: VAEOutput, images: Images) -> PerItem:
        """One value per image, `[b]`; arguments as in `update`."""

    def update(self, output: VAEOutput, images: Images) -> None:
        """Add one batch.

        Args:
            output: What the model gave.
            images: The images, `[b, 3, h, w]` in [0, 1].
        """
        self.count += len(images)
        self.total += self.values(output, images).double().sum()

    def compute(self) -> Tensor:
        """The mean over the images, in the values' unit."""
        return self.total / self.count
