"""Latents brought to mean 0 and variance 1: statistics over a data set, and the scaling that they give."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from transfervae.errors import InvalidOptionError, ShapeError, UnknownNameError
from transfervae.shapes import Latents, at_least_float32

EPSILON = 1e-5

EXTENTS = ("channel", "position")
"""What may share a mean and a deviation: all positions of a map's channel, or each position has its own."""

CONVENTIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "rae": lambda variance: (variance + EPSILON).sqrt(),
        "diffusers": lambda variance: variance.sqrt() + EPSILON,
    }
)
"""How a variance becomes what a latent is divided by, kept above 0."""


class LatentStatistics:
    """Mean and variance of latents, position by position, over batches in any order and number.

    Batches are joined by the pairwise update of Chan, Golub & LeVeque (1979), in float64, so that the result is that
    of all latents at once up to rounding, also where the mean is large beside the spread. Memory does not grow.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._count = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())

    @property
    def count(self) -> int:
        """Number of latents."""
        return self._count

    @property
    def mean(self) -> Tensor:
        """Mean of each position, `[*latent]`, float64.

        Raises:
            InvalidOptionError: If there was no latent yet.
        """
        self._check_not_empty()
        return self._mean

    @property
    def variance(self) -> Tensor:
        """Population variance (divided by the number) of each position, `[*latent]`, float64.

        Raises:
            InvalidOptionError: If there was no latent yet.
        """
        self._check_not_empty()
        return self._squares / self._count

    def update(self, latents: Latents, variance: Latents | None = None) -> None:
        """Add a batch.

        Args:
            latents: `[b, *latent]`; values of any floating dtype.
            variance: `[b, *latent]` if the latents are means of distributions: the variance about each. The statistics
                are then those of infinitely many draws (law of total variance: the variance of the means plus the mean
                of the variances).

        Raises:
            ShapeError: If the latents have another shape than those before, or than `variance`.
        """
        if variance is not None and variance.shape != latents.shape:
            raise ShapeError(
                f"Latents and their variance must have one shape, got {list(latents.shape)} and {list(variance.shape)}."
            )
        if len(latents) == 0:
            return
        values = _exact(latents)
        mean = values.mean(dim=0)
        squares = (values - mean).square().sum(dim=0)
        if variance is not None:
            squares = squares + _exact(variance).sum(dim=0)
        self._join(len(values), mean, squares)

    def merge(self, other: "LatentStatistics") -> None:
        """Add the latents that another one has seen.

        Raises:
            ShapeError: If they have another shape.
        """
        if other.count:
            self._join(other.count, other.mean, other.variance * other.count)

    def synchronise(self) -> None:
        """Join the statistics of all processes of torch.distributed, in the order of their ranks.

        All processes must call it, and end up with the same numbers, bit for bit. Without torch.distributed nothing
        happens.

        Raises:
            ShapeError: If latents of different processes have different shapes.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        device = self._mean.device
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (self._count, self._mean.cpu(), self._squares.cpu()))
        self._count = 0
        for part in parts:  # on the CPU, so that no rounding depends on a process's device
            self._join(*part)
        self._mean, self._squares = self._mean.to(device), self._squares.to(device)

    def per_channel(self) -> "LatentStatistics":
        """The same values counted channel by channel: for maps `[c, h, w]` all positions of a channel are one.

        Returns:
            Statistics of shape `[c, 1, 1]` for maps, of `[d]` for vectors.
        """
        pooled = LatentStatistics()
        dims = tuple(range(1, self.mean.ndim))
        if not dims:
            pooled.merge(self)
            return pooled
        mean = self.mean.mean(dim=dims, keepdim=True)
        squares = self._squares + self._count * (self.mean - mean).square()
        pooled._join(self._count * self.mean[0].numel(), mean, squares.sum(dim=dims, keepdim=True))
        return pooled

    def _check_not_empty(self) -> None:
        if not self._count:
            raise InvalidOptionError("There are no statistics of no latents; give some with update().")

    def _join(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if not count:
            return
        if not self._count:
            self._count, self._mean, self._squares = count, mean, squares
            return
        if self._mean.shape != mean.shape:
            raise ShapeError(f"The latents before were {list(self._mean.shape)}, these are {list(mean.shape)}.")
        total = self._count + count
        distance = mean.to(self._mean) - self._mean
        self._mean = self._mean + distance * (count / total)
        self._squares = self._squares + squares.to(self._mean) + distance.square() * (self._count * count / total)
        self._count = total


class LatentScaling(nn.Module):
    """A fixed affine map to latents of mean 0 and variance 1, and back.

    Generative models of latents want them so. The two tensors are buffers: they are saved with a model and never
    trained.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        """Make a scaling.

        Args:
            mean: What is subtracted; of a shape that broadcasts against a latent: `(d,)`, `(c, 1, 1)` or `(c, h, w)`.
            std: What is divided by; of the same shape, finite and above 0.

        Raises:
            ShapeError: If the shapes differ.
            InvalidOptionError: If a value is not finite, or `std` not above 0.
        """
        super().__init__()
        if mean.shape != std.shape:
            raise ShapeError(f"mean and std must have one shape, got {list(mean.shape)} and {list(std.shape)}.")
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise InvalidOptionError("A scaling needs finite values of mean and std, and std above 0.")
        self.register_buffer("mean", at_least_float32(mean.detach()).clone())
        self.register_buffer("std", at_least_float32(std.detach()).clone())

    @staticmethod
    def from_statistics(
        statistics: LatentStatistics, *, per: str = "channel", convention: str = "rae"
    ) -> "LatentScaling":
        """Make the scaling that statistics give.

        Args:
            statistics: Of at least one latent.
            per: "channel" (one mean and deviation for all positions of a map's channel) or "position".
            convention: What keeps the deviation above 0: "rae" divides by sqrt(variance + 1e-5), as the original code
                of representation autoencoders does, "diffusers" by sqrt(variance) + 1e-5, as its port there does.

        Raises:
            UnknownNameError: For another `per` or `convention`.
            InvalidOptionError: If there was no latent, or one that is not finite.
        """
        check_scaling_names(per, convention)
        moments = statistics.per_channel() if per == "channel" else statistics
        return LatentScaling(moments.mean.float(), CONVENTIONS[convention](moments.variance).float())

    @staticmethod
    def identity(shape: Sequence[int]) -> "LatentScaling":
        """A scaling that changes nothing, for values that are loaded later."""
        return LatentScaling(torch.zeros(tuple(shape)), torch.ones(tuple(shape)))

    @property
    def config(self) -> dict[str, object]:
        """What `identity` needs to build a scaling of this shape again: plain values."""
        return {"shape": list(self.mean.shape)}

    def check_fit(self, latent_shape: Sequence[int]) -> None:
        """Check that the scaling is for latents of one shape.

        Raises:
            ShapeError: If it does not broadcast against them.
        """
        own = tuple(self.mean.shape)
        if len(own) != len(latent_shape) or any(
            side not in (1, wanted) for side, wanted in zip(own, latent_shape, strict=True)
        ):
            raise ShapeError(f"The scaling is for latents {own}, the model has {tuple(latent_shape)}.")

    def normalise(self, latents: Latents) -> Latents:
        """(latents - mean) / std, `[b, *latent]`, in at least float32."""
        latents = at_least_float32(latents)
        return (latents - self.mean.to(latents.dtype)) / self.std.to(latents.dtype)

    def restore(self, latents: Latents) -> Latents:
        """Latents * std + mean, `[b, *latent]`, in at least float32: undoes `normalise`."""
        latents = at_least_float32(latents)
        return latents * self.std.to(latents.dtype) + self.mean.to(latents.dtype)


def check_scaling_names(per: str, convention: str) -> None:
    """Check the two names that `LatentScaling.from_statistics` takes, before a long pass over images.

    Raises:
        UnknownNameError: For another `per` or `convention`.
    """
    if per not in EXTENTS:
        raise UnknownNameError("extent (per)", per, EXTENTS)
    if convention not in CONVENTIONS:
        raise UnknownNameError("convention", convention, CONVENTIONS)


def _exact(values: Tensor) -> Tensor:
    values = values.detach()
    return (values.cpu() if values.device.type == "mps" else values).double()
