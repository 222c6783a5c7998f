"""The likelihood of images under a model, by importance sampling."""

import math
from typing import cast

import torch
from torch import Tensor

from transfervae.errors import InvalidOptionError
from transfervae.model import TransferVAE, evaluation_mode
from transfervae.posteriors import DiagonalGaussian
from transfervae.priors import Prior
from transfervae.shapes import Images, PerItem, check_positive, check_seed


@torch.no_grad()
def negative_log_likelihood(
    vae: TransferVAE, images: Images, *, sigma: float, draws: int = 64, seed: int = 0
) -> PerItem:
    """Estimate -log p(image), in nats per image, with draws from the posterior (Burda et al. 2016, equation 8).

    With z from q(z|x): -log of the mean of p(x|z) p(z) / q(z|x), where p(x|z) is a Gaussian of standard deviation
    `sigma` around the decoded image, over all c * h * w values, and p(z) the model's prior. It is an upper bound in
    expectation, and falls to the likelihood as the number of draws grows. Divide by c * h * w * log 2 for bits per
    dimension.

    Args:
        vae: The model; its head must give Gaussians, and its prior be one of latents as the head gives them.
        images: `[b, 3, h, w]` in [0, 1], of the model's size.
        sigma: Standard deviation of a pixel value, above 0; the model's held-out RMSE is its maximum-likelihood value.
        draws: How many for each image.
        seed: Of the draws.

    Returns:
        `[b]`, in nats.

    Raises:
        InvalidOptionError: If the posterior is no Gaussian, the prior is in scaled space, or a number is out of range.
    """
    check_positive(draws=draws)
    check_seed(seed)
    if not 0 < sigma < math.inf:
        raise InvalidOptionError(f"sigma must be above 0 and finite, got {sigma}.")
    prior = cast(Prior, vae.prior)
    generator = torch.Generator(vae.device).manual_seed(seed)
    with evaluation_mode(vae):
        posterior = vae.encode(images)
        if not isinstance(posterior, DiagonalGaussian) or prior.is_scaled:
            raise InvalidOptionError("A likelihood needs a Gaussian posterior, and a prior in its space.")
        weights = []
        for _ in range(draws):
            latents = posterior.sample(generator=generator)
            log_likelihood = _gaussian_log_prob(vae.decode(latents), images, sigma)
            weights.append(log_likelihood + prior.log_prob(latents) - posterior.log_prob(latents))
    return math.log(draws) - torch.stack(weights).logsumexp(dim=0)


def _gaussian_log_prob(decoded: Images, images: Images, sigma: float) -> Tensor:
    squares = (decoded - images).double().square().flatten(1)
    constant = squares.shape[1] * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    return -0.5 * squares.sum(dim=1) / sigma**2 - constant
