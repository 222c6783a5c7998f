import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import transfervae as tv
from tests.samples import make_backbone, make_vae, random_images
from transfervae.errors import InvalidOptionError
from transfervae.evaluation import negative_log_likelihood

SIZE, DIMS, SIGMA = 32, 3, 0.3
PIXELS = 3 * SIZE * SIZE


def orthogonal(seed: int) -> Tensor:
    """Columns that are orthogonal and of different lengths: the posterior is then a diagonal Gaussian."""
    draws = torch.randn(PIXELS, DIMS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(draws)[0]
    return basis * torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)


class LinearDecoder(nn.Module):
    """x = W z + 1/2."""

    def __init__(self, columns: Tensor) -> None:
        super().__init__()
        self.latent_shape, self.image_size = (DIMS,), (SIZE, SIZE)
        self.columns = columns

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = (latents.double() @ self.columns.T + 0.5).view(-1, 3, SIZE, SIZE)
        return images


class GivenPosterior(nn.Module):
    """The posterior that the test gives, whatever the features."""

    posterior: tv.DiagonalGaussian

    def latent_shape_for(self, _shape: Any) -> tuple[int, ...]:
        return (DIMS,)

    def forward(self, _features: Tensor) -> tv.DiagonalGaussian:
        return self.posterior


def linear_model() -> tuple[Any, Tensor, Tensor, Tensor]:
    """A model whose likelihood is known, images, their -log p, and the exact posterior's mean."""
    columns = orthogonal(0)
    vae: Any = tv.TransferVAE(make_backbone("resnet"), GivenPosterior(), LinearDecoder(columns))
    covariance = columns @ columns.T + SIGMA**2 * torch.eye(PIXELS, dtype=torch.float64)
    exact = MultivariateNormal(torch.full((PIXELS,), 0.5, dtype=torch.float64), covariance)
    images = exact.sample((2,)).clamp(0, 1)
    precision = 1 + columns.square().sum(dim=0) / SIGMA**2
    mean = (images - 0.5) @ columns / SIGMA**2 / precision
    vae.head.posterior = tv.DiagonalGaussian(mean, -precision.log().expand_as(mean))
    return vae, images.view(2, 3, SIZE, SIZE), -exact.log_prob(images), mean


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("draws", [1, 5])
def test_one_draw_from_the_exact_posterior_is_enough(draws: int) -> None:
    torch.manual_seed(0)
    vae, images, expected, _ = linear_model()
    found = negative_log_likelihood(vae, images, sigma=SIGMA, draws=draws)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-3)


@pytest.mark.usefixtures("without_shape_checks")
def test_more_draws_from_another_posterior_come_closer_from_above() -> None:
    torch.manual_seed(0)
    vae, images, expected, mean = linear_model()
    vae.head.posterior = tv.DiagonalGaussian(mean + 0.05, torch.full_like(mean, -2.0))
    errors = []
    for draws in (1, 30, 3000):
        found = torch.stack([negative_log_likelihood(vae, images, sigma=SIGMA, draws=draws, seed=s) for s in range(3)])
        errors.append((found - expected).mean().item())
    assert errors[0] > errors[1] > 0
    assert abs(errors[2]) < 0.05


def test_what_has_no_likelihood_is_refused() -> None:
    images = random_images()
    with pytest.raises(InvalidOptionError, match="Gaussian posterior"):
        negative_log_likelihood(make_vae(head="deterministic", latent_dim=None), images, sigma=0.1)
    for sigma in (0.0, math.nan, math.inf):
        with pytest.raises(InvalidOptionError, match="sigma"):
            negative_log_likelihood(make_vae(), images, sigma=sigma)
