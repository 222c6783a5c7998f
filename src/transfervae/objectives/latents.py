"""Terms of the latents of a whole batch: their dependence on each other, and their distance from the prior."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from transfervae.errors import InvalidOptionError
from transfervae.objectives.term import ModelOutput, Term, TermValue
from transfervae.options import records_options
from transfervae.posteriors import DiagonalGaussian, Posterior
from transfervae.shapes import Images, Scalar

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Widths of the kernels of `MMD`, as multiples of the squared distance of two draws from the prior."""


class _OfBatch(Term):
    """A term with one value for the batch; 0 for a batch of one item, which tells nothing of it."""

    def evaluate(self, output: ModelOutput, images: Images) -> TermValue:  # noqa: ARG002 - every term has them
        """The value of the batch, twice."""
        latents = output.latent.flatten(1)
        value = self.of_latents(output.posterior, latents) if len(latents) > 1 else 0.0 * latents.sum()
        return TermValue(value, value)

    def of_latents(self, posterior: Posterior, latents: Float[Tensor, "b d"]) -> Scalar:
        """The value of a batch's latents."""
        raise NotImplementedError


@records_options
class TotalCorrelation(_OfBatch):
    """Total correlation of the latents, in nats: KL of their joint distribution to the product of its margins.

    Beside the KL it makes a beta-TC-VAE (Chen et al. 2018): weight beta - 1, and the KL at 1. The distribution of the
    latents is estimated as the mean of the batch's posteriors, in float64; with batches of b items it cannot exceed
    (d - 1) log b. With the dimension-wise KL and the mutual information it adds up to the KL (equation 2 there).
    """

    def of_latents(self, posterior: Posterior, latents: Float[Tensor, "b d"]) -> Scalar:
        """The estimate for a batch.

        Raises:
            InvalidOptionError: If the posterior is no Gaussian.
        """
        joint, margins, _ = log_densities(posterior, latents)
        return (joint - margins.sum(dim=1)).mean().to(latents.dtype)

    def default_weight(self, others: Sequence[Term], latent_size: int) -> float:
        """Five times the KL's weight: beta 6, as in the paper's experiments, beside a KL that counts once.

        Raises:
            InvalidOptionError: If there is no reconstruction term whose scale is known.
        """
        from transfervae.objectives.kl import KL

        return 5 * KL().default_weight(others, latent_size)


def log_densities(
    posterior: Posterior, latents: Float[Tensor, "b d"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b d"], Float[Tensor, " b"]]:
    """Logarithms of the densities of draws: under the mean of a batch's posteriors, its margins, and their own.

    Args:
        posterior: Of the batch.
        latents: One draw from each, flattened.

    Returns:
        log q(z), log q(z_j) for each number, and log q(z|x), in float64.

    Raises:
        InvalidOptionError: If the posterior is no Gaussian.
    """
    if not isinstance(posterior, DiagonalGaussian):
        raise InvalidOptionError("The total correlation needs a Gaussian head.")
    means, logvars = (values.flatten(1).double() for values in (posterior.mean, posterior.logvar))
    differences = latents.double()[:, None] - means[None]
    each = -0.5 * (differences.square() * (-logvars).exp() + logvars + math.log(2 * math.pi))
    together = each.sum(dim=2)
    count = math.log(len(latents))
    return together.logsumexp(dim=1) - count, each.logsumexp(dim=1) - count, together.diagonal()


@records_options
class MMD(_OfBatch):
    """Maximum mean discrepancy of the batch's latents and as many draws from the standard normal.

    With inverse multiquadratic kernels of seven widths, as in WAE-MMD (Tolstikhin et al. 2018) and InfoVAE (Zhao et al.
    2019); the unbiased estimate, about 0 where the two are alike. Unlike the KL it lets single posteriors be narrow.
    Draws come from torch's global generator, which a run seeds in every epoch.
    """

    def of_latents(self, posterior: Posterior, latents: Float[Tensor, "b d"]) -> Scalar:  # noqa: ARG002 - as above
        """The estimate for a batch."""
        draws = torch.randn_like(latents)
        count = len(latents)
        own, other = (_kernel(values, values) for values in (latents, draws))
        within = sum((kernel.sum() - kernel.diagonal().sum()) / (count * (count - 1)) for kernel in (own, other))
        return within - 2 * _kernel(latents, draws).mean()


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    """The sum over scales of c / (c + |x - y|^2), with c a multiple of 2 d: the mean of |x - y|^2 under the prior."""
    squares = (one[:, None] - other[None]).square().sum(dim=2)
    return torch.stack([2 * one.shape[1] * scale / (2 * one.shape[1] * scale + squares) for scale in SCALES]).sum(dim=0)
