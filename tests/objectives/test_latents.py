import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.strategies import SEEDS
from transfervae import DiagonalGaussian, Objective, PointPosterior, Spec, VAEOutput
from transfervae.errors import InvalidOptionError
from transfervae.objectives import KL, MMD, TotalCorrelation
from transfervae.objectives.latents import log_densities


def output_of(posterior: DiagonalGaussian, seed: int = 0) -> VAEOutput:
    latents = posterior.sample(generator=torch.Generator().manual_seed(seed))
    return VAEOutput(torch.zeros(len(latents), 3, 2, 2), posterior, latents)


def images_of(output: VAEOutput) -> Tensor:
    return torch.zeros(len(output.latent), 3, 2, 2)


def random_posterior(count: int, dims: int, seed: int) -> DiagonalGaussian:
    generator = torch.Generator().manual_seed(seed)
    return DiagonalGaussian(
        torch.randn(count, dims, generator=generator), 0.5 * torch.randn(count, dims, generator=generator) - 1
    )


@given(count=st.integers(2, 20), dims=st.integers(1, 6), seed=SEEDS)
def test_information_total_correlation_and_dimensionwise_kl_add_up_to_the_kl(count: int, dims: int, seed: int) -> None:
    posterior = random_posterior(count, dims, seed)
    output = output_of(posterior, seed)
    joint, margins, own = log_densities(posterior, output.latent)
    prior = -0.5 * (output.latent.double().square() + math.log(2 * math.pi))
    information, dimensionwise = (own - joint).mean(), (margins - prior).sum(dim=1).mean()
    correlation = TotalCorrelation().evaluate(output, images_of(output)).raw.double()
    drawn = posterior.log_prob(output.latent).double() - prior.sum(dim=1)
    torch.testing.assert_close(information + correlation + dimensionwise, drawn.mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_total_correlation_is_that_of_correlated_gaussians(correlation: float) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.tensor([[1.0, correlation], [correlation, 1.0]])
    noise = 0.2
    means = torch.randn(2000, 2, generator=generator) @ torch.linalg.cholesky(matrix - noise**2 * torch.eye(2)).T
    posterior = DiagonalGaussian(means, torch.full_like(means, 2 * math.log(noise)))
    output = output_of(posterior, seed=1)
    found = TotalCorrelation().evaluate(output, images_of(output)).raw.item()
    assert found == pytest.approx(-0.5 * math.log(1 - correlation**2), abs=0.06)


def test_total_correlation_needs_gaussians_and_two_items() -> None:
    zeros = torch.zeros(4, 2)
    points = VAEOutput(torch.zeros(4, 3, 2, 2), PointPosterior(zeros, 0.5), zeros)
    with pytest.raises(InvalidOptionError, match="Gaussian head"):
        TotalCorrelation().evaluate(points, images_of(points))
    single = output_of(random_posterior(1, 2, 0))
    for term in (MMD(), TotalCorrelation()):
        assert term.evaluate(single, images_of(single)).raw == 0


def test_discrepancy_is_0_for_the_prior_and_grows_with_the_distance() -> None:
    values = []
    for shift in (0.0, 0.5, 1.0, 2.0):
        generator = torch.Generator().manual_seed(0)
        latents = shift + torch.randn(1000, 4, generator=generator)
        torch.manual_seed(1)
        posterior = DiagonalGaussian(latents, torch.full_like(latents, -20.0))
        values.append(MMD().of_latents(posterior, latents).item())
    assert abs(values[0]) < 0.02
    assert values == sorted(values)


def test_discrepancy_agrees_with_a_naive_loop() -> None:
    latents = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    draws = torch.randn_like(latents)

    def kernel(one: Tensor, other: Tensor) -> float:
        square = float(((one - other) ** 2).sum())
        return sum(6 * scale / (6 * scale + square) for scale in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0))

    pairs = [(i, j) for i in range(6) for j in range(6)]
    own = np.mean([kernel(latents[i], latents[j]) for i, j in pairs if i != j])
    other = np.mean([kernel(draws[i], draws[j]) for i, j in pairs if i != j])
    across = np.mean([kernel(latents[i], draws[j]) for i, j in pairs])
    torch.manual_seed(5)
    posterior = DiagonalGaussian(latents, torch.zeros_like(latents))
    assert MMD().of_latents(posterior, latents).item() == pytest.approx(own + other - 2 * across, rel=1e-4)


def test_capacity_is_a_distance() -> None:
    posterior = random_posterior(5, 3, 0)
    output = output_of(posterior)
    kl = posterior.kl()
    value = KL(capacity=2.0).evaluate(output, images_of(output))
    torch.testing.assert_close(value.raw, kl.mean())
    torch.testing.assert_close(value.minimised, (kl - 2).abs().mean())
    with pytest.raises(InvalidOptionError, match="not both"):
        KL(capacity=1.0, free_bits=0.1)
    with pytest.raises(InvalidOptionError, match="capacity"):
        KL(capacity=-1.0)


def test_terms_of_latents_have_weights_beside_a_reconstruction() -> None:
    weights = Objective("rmse", "kl", "total_correlation", Spec("mmd", weight=2.0)).final_weights()
    assert weights == {"rmse": 1.0, "kl": 1e-4, "total_correlation": pytest.approx(5e-4), "mmd": 2.0}
