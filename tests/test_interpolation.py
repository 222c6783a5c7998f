import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.strategies import BATCH_SIZES, LATENT_SHAPES, SEEDS
from transfervae.interpolation import INTERPOLATIONS, linear, spherical


def draws(batch: int, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", INTERPOLATIONS)
@given(batch=BATCH_SIZES, shape=LATENT_SHAPES, seed=SEEDS, steps=st.integers(2, 6))
def test_path_has_its_shape_and_its_ends(name: str, batch: int, shape: tuple[int, ...], seed: int, steps: int) -> None:
    start, end = draws(batch, shape, seed)
    path = INTERPOLATIONS[name](start, end, torch.linspace(0, 1, steps, dtype=torch.float64))
    assert path.shape == (batch, steps, *shape)
    assert_close(path[:, 0], start, rtol=1e-14, atol=0)
    assert_close(path[:, -1], end, rtol=1e-14, atol=0)


@given(shape=LATENT_SHAPES, seed=SEEDS, t=st.floats(0, 1))
def test_linear_is_the_weighted_mean(shape: tuple[int, ...], seed: int, t: float) -> None:
    start, end = draws(2, shape, seed)
    assert_close(linear(start, end, torch.tensor([t], dtype=torch.float64))[:, 0], (1 - t) * start + t * end)


@given(angle=st.floats(-3, 3), turn=st.floats(0.01, 3.1), t=st.floats(0, 1), radius=st.floats(0.1, 20))
def test_spherical_turns_at_constant_speed_in_the_plane(angle: float, turn: float, t: float, radius: float) -> None:
    def point(at: float) -> Tensor:
        return radius * torch.tensor([[math.cos(at), math.sin(at)]], dtype=torch.float64)

    path = spherical(point(angle), point(angle + turn), torch.tensor([t], dtype=torch.float64))
    assert_close(path[:, 0], point(angle + t * turn), rtol=1e-7, atol=1e-7)


@given(dim=st.integers(2, 64), seed=SEEDS)
def test_spherical_keeps_the_norm(dim: int, seed: int) -> None:
    start, end = (7 * torch.nn.functional.normalize(values, dim=1) for values in draws(3, (dim,), seed))
    norms = spherical(start, end, torch.linspace(0, 1, 9, dtype=torch.float64)).norm(dim=2)
    assert_close(norms, torch.full((3, 9), 7.0, dtype=torch.float64))


@given(dim=st.integers(2, 16), seed=SEEDS, factor=st.sampled_from([1.0, 3.0, -1.0, -2.0, 1 + 1e-7]))
def test_spherical_of_parallel_latents_is_the_straight_line(dim: int, seed: int, factor: float) -> None:
    start = draws(2, (dim,), seed)[0].requires_grad_()
    weight = torch.linspace(0, 1, 5, dtype=torch.float64)
    path = spherical(start, factor * start, weight)
    assert_close(path, linear(start, factor * start, weight))
    path.sum().backward()
    assert start.grad is not None
    assert start.grad.isfinite().all()


def test_items_of_a_batch_do_not_mix() -> None:
    start, end = draws(3, (4,), 0)
    weight = torch.linspace(0, 1, 5, dtype=torch.float64)
    alone = torch.cat([spherical(start[i : i + 1], end[i : i + 1], weight) for i in range(3)])
    assert_close(spherical(start, end, weight), alone)
