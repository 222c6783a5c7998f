import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.strategies import SEEDS, features
from transfervae import PooledGaussianHead
from transfervae.errors import InvalidOptionError

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6))


def by_hand(head: PooledGaussianHead, normal: Tensor) -> Tensor:
    """Pooled features of one image, cell by cell in float64."""
    channels, height, width = normal.shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    pooled = []
    for content, place in zip(head.content.double(), head.place.double(), strict=True):
        scores = []
        for y, x in cells:
            u, v = (y + 0.5) / height, (x + 0.5) / width
            waves = [math.cos(math.pi * i * u) * math.cos(math.pi * j * v) for i in range(4) for j in range(4)]
            wanted = normal[:, y, x] @ content / math.sqrt(channels)
            scores.append(wanted + torch.tensor(waves[1:], dtype=torch.float64) @ place)
        weights = torch.stack(scores).softmax(dim=0)
        pooled.append(sum(weight * normal[:, y, x] for weight, (y, x) in zip(weights, cells, strict=True)))
    return torch.cat([torch.as_tensor(vector) for vector in pooled])


@given(channels=st.integers(2, 5), grid=GRIDS, queries=st.integers(1, 3), seed=SEEDS)
def test_mean_agrees_with_its_formula_in_float64_also_under_autocast(
    channels: int, grid: tuple[int, int], queries: int, seed: int
) -> None:
    torch.manual_seed(seed)
    head = PooledGaussianHead((channels, 1, 1), latent_dim=3, queries=queries)
    values = 50 * torch.randn(1, channels, *grid) + 7
    normal = torch.nn.functional.layer_norm(values.double(), values.shape[1:])[0]
    pooled = by_hand(head, normal)
    pooled = torch.nn.functional.layer_norm(pooled, pooled.shape)
    with torch.autocast("cpu", torch.bfloat16):
        mean = head(values).mean[0]
    assert_close(mean.double(), head.mean.weight.double() @ pooled, rtol=1e-3, atol=1e-4)


@given(values=features())
def test_attention_adds_up_to_one_for_each_query(values: Tensor) -> None:
    head = PooledGaussianHead((values.shape[1], 1, 1), latent_dim=3, queries=4)
    weights = head.attention(torch.nn.functional.layer_norm(values, values.shape[1:]))
    assert weights.shape == (len(values), 4, values.shape[2] * values.shape[3])
    assert_close(weights.sum(dim=-1), torch.ones(len(values), 4))


def test_a_place_is_told_from_another() -> None:
    torch.manual_seed(0)
    head = PooledGaussianHead((4, 1, 1), latent_dim=8)
    values = torch.zeros(2, 4, 6, 6)
    values[0, 0, 1, 1] = values[1, 0, 4, 4] = 1.0
    first, second = head(values).mean
    assert (first - second).norm() > 0.1 * first.norm()


def test_a_finer_grid_of_the_same_features_gives_nearly_the_same_posterior() -> None:
    torch.manual_seed(0)
    head = PooledGaussianHead((16, 1, 1), latent_dim=8)
    coarse = torch.nn.functional.interpolate(torch.randn(2, 16, 4, 4), size=16, mode="bilinear")
    fine = torch.nn.functional.interpolate(coarse, size=48, mode="bilinear")
    first, second = head(coarse).mean, head(fine).mean
    assert (first - second).norm() < 0.05 * first.norm()


@pytest.mark.parametrize("latent_dim", [64, 128, 512])
def test_expected_kl_at_the_first_step_is_the_documented_one(latent_dim: int) -> None:
    torch.manual_seed(0)
    kl = PooledGaussianHead((64, 1, 1), latent_dim=latent_dim)(torch.randn(64, 64, 4, 4) * 100 + 30).kl().mean().item()
    assert kl == pytest.approx(min(latent_dim / 8, 10.0), rel=0.2)


@pytest.mark.parametrize("options", [(0, 1), (4, 0)])
def test_numbers_below_one_are_refused(options: tuple[int, int]) -> None:
    with pytest.raises(InvalidOptionError, match=r"latent_dim|queries"):
        PooledGaussianHead((4, 1, 1), latent_dim=options[0], queries=options[1])
