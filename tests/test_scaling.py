import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.integration.command import environment
from tests.strategies import LATENT_SHAPES, SEEDS
from transfervae import DiagonalGaussian, LatentScaling, LatentStatistics
from transfervae.errors import InvalidOptionError, ShapeError, UnknownNameError

OFFSETS = st.sampled_from([0.0, 1.0, 1e4])
CUTS = st.lists(st.integers(0, 40), max_size=6)


@st.composite
def latents(draw: st.DrawFn, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Latents whose mean may be far larger than their spread."""
    shape = (draw(st.integers(1, 40)), *draw(LATENT_SHAPES))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(SEEDS)), dtype=dtype)
    return values + draw(OFFSETS)


def pieces(values: Tensor, cuts: list[int]) -> list[Tensor]:
    return list(values.tensor_split(sorted(min(cut, len(values)) for cut in cuts)))


def statistics_of(*batches: Tensor) -> LatentStatistics:
    statistics = LatentStatistics()
    for batch in batches:
        statistics.update(batch)
    return statistics


def assert_exact(statistics: LatentStatistics, values: Tensor) -> None:
    wide = values.double()
    assert statistics.count == len(values)
    assert statistics.mean.dtype == statistics.variance.dtype == torch.float64
    assert_close(statistics.mean, wide.mean(dim=0), rtol=1e-12, atol=1e-13)
    assert_close(statistics.variance, wide.var(dim=0, unbiased=False), rtol=1e-9, atol=1e-13)


@given(values=latents(), cuts=CUTS)
def test_statistics_are_those_of_all_latents_however_they_are_batched(values: Tensor, cuts: list[int]) -> None:
    assert_exact(statistics_of(*pieces(values, cuts)), values)


@given(values=latents(), cuts=CUTS, order=st.randoms(use_true_random=False))
def test_statistics_are_those_of_all_latents_however_they_are_merged(
    values: Tensor, cuts: list[int], order: random.Random
) -> None:
    parts = [statistics_of(piece) for piece in pieces(values, cuts)]
    while len(parts) > 1:
        order.shuffle(parts)
        parts[-2].merge(parts.pop())
    assert_exact(parts[0], values)


def test_float32_would_have_lost_the_spread() -> None:
    values = 1e4 + torch.randn(5000, 1, generator=torch.Generator().manual_seed(0))
    naive = values.square().mean() - values.mean().square()
    assert abs(naive.item() - 1) > 0.5
    assert_exact(statistics_of(*values.split(7)), values)


def test_merging_leaves_the_other_as_it_was() -> None:
    first, second = statistics_of(torch.zeros(2, 3)), statistics_of(torch.ones(4, 3))
    first.merge(second)
    first.update(torch.ones(1, 3))
    assert_exact(second, torch.ones(4, 3))
    empty = LatentStatistics()
    empty.merge(second)
    empty.update(torch.zeros(4, 3))
    assert_exact(second, torch.ones(4, 3))


@given(values=latents())
def test_merging_with_nothing_changes_nothing(values: Tensor) -> None:
    statistics = statistics_of(values)
    statistics.merge(LatentStatistics())
    statistics.update(values[:0])
    assert_exact(statistics, values)
    other = LatentStatistics()
    other.merge(LatentStatistics())
    assert other.count == 0


def test_one_latent_has_no_variance() -> None:
    statistics = statistics_of(torch.full((1, 3), 7.0))
    assert statistics.mean.tolist() == [7.0, 7.0, 7.0]
    assert statistics.variance.tolist() == [0.0, 0.0, 0.0]


def test_nothing_has_no_statistics() -> None:
    for ask in (lambda: LatentStatistics().mean, lambda: LatentStatistics().variance, LatentStatistics().per_channel):
        with pytest.raises(InvalidOptionError, match="no latents"):
            ask()


@given(values=latents(), cuts=CUTS)
def test_channels_pool_all_their_positions(values: Tensor, cuts: list[int]) -> None:
    pooled = statistics_of(*pieces(values, cuts)).per_channel()
    columns = values.transpose(0, 1).flatten(1).T
    assert pooled.mean.shape == (values.shape[1], *[1] * (values.ndim - 2))
    assert pooled.count == len(columns)
    assert_close(pooled.mean.flatten(), columns.double().mean(dim=0), rtol=1e-12, atol=1e-13)
    assert_close(pooled.variance.flatten(), columns.double().var(dim=0, unbiased=False), rtol=1e-9, atol=1e-13)


@given(values=latents(), cuts=CUTS, seed=SEEDS)
def test_variances_of_distributions_are_added_by_the_law_of_total_variance(
    values: Tensor, cuts: list[int], seed: int
) -> None:
    variances = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed))
    statistics = LatentStatistics()
    for mean, variance in zip(pieces(values, cuts), pieces(variances, cuts), strict=True):
        statistics.update(mean, variance)
    expected = values.double().var(dim=0, unbiased=False) + variances.double().mean(dim=0)
    assert_close(statistics.variance, expected, rtol=1e-9, atol=1e-13)
    assert_close(statistics.mean, values.double().mean(dim=0), rtol=1e-12, atol=1e-13)


def test_draws_have_the_statistics_of_their_distributions() -> None:
    torch.manual_seed(0)
    posterior = DiagonalGaussian(2 * torch.randn(20_000, 3) + 5, torch.randn(20_000, 3))
    drawn, exact = statistics_of(posterior.sample()), LatentStatistics()
    exact.update(posterior.mean, posterior.variance)
    assert_close(drawn.mean, exact.mean, rtol=0.02, atol=0)
    assert_close(drawn.variance, exact.variance, rtol=0.05, atol=0)


@pytest.mark.usefixtures("without_shape_checks")
def test_latents_of_different_shapes_are_refused() -> None:
    statistics = statistics_of(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"\[3\], these are \[4\]"):
        statistics.update(torch.zeros(2, 4))
    with pytest.raises(ShapeError, match="these are"):
        statistics.merge(statistics_of(torch.zeros(2, 3, 1, 1)))
    with pytest.raises(ShapeError, match="variance"):
        statistics.update(torch.zeros(2, 3), torch.zeros(2, 1))
    assert_exact(statistics, torch.zeros(2, 3))


def test_alone_synchronising_does_nothing() -> None:
    statistics = statistics_of(torch.ones(2, 3))
    statistics.synchronise()
    assert_exact(statistics, torch.ones(2, 3))


TWO_PROCESSES = """
import sys
import torch
from torch import distributed
from torch.multiprocessing import spawn
from transfervae import LatentStatistics

def work(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    values = torch.load(f"{folder}/values.pt")
    results = []
    for share in ((values[:5], values[5:]), (values[:0], values)):
        statistics = LatentStatistics()
        statistics.update(share[rank])
        statistics.synchronise()
        results.append((statistics.count, statistics.mean, statistics.variance))
    nothing = LatentStatistics()
    nothing.synchronise()
    torch.save((results, nothing.count), f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()

if __name__ == "__main__":
    spawn(work, (sys.argv[1],), nprocs=2)
"""


def test_two_processes_end_with_the_statistics_of_all(tmp_path: Path) -> None:
    values = 1e4 + torch.randn(17, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.save(values, tmp_path / "values.pt")
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    process = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 0, process.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert first[1] == second[1] == 0
    for own, others in zip(first[0], second[0], strict=True):
        assert own[0] == others[0] == 17
        assert torch.equal(own[1], others[1])
        assert torch.equal(own[2], others[2])
        assert_close(own[1], values.double().mean(dim=0), rtol=1e-12, atol=0)
        assert_close(own[2], values.double().var(dim=0, unbiased=False), rtol=1e-9, atol=0)


@pytest.mark.parametrize("per", ["channel", "position"])
@pytest.mark.parametrize("convention", ["rae", "diffusers"])
@given(values=latents())
def test_scaling_follows_its_convention(per: str, convention: str, values: Tensor) -> None:
    scaling = LatentScaling.from_statistics(statistics_of(values), per=per, convention=convention)
    dims = (0, *range(2, values.ndim)) if per == "channel" else (0,)
    variance, mean = torch.var_mean(values.double(), dim=dims, correction=0, keepdim=True)
    std = (variance + 1e-5).sqrt() if convention == "rae" else variance.sqrt() + 1e-5
    assert_close(scaling.mean, mean[0].float())
    assert_close(scaling.std, std[0].float())
    wide = values.double()
    assert_close(scaling.double().normalise(wide), (wide - mean) / std, rtol=1e-4, atol=1e-2)


@given(values=latents(), per=st.sampled_from(["channel", "position"]))
def test_restoring_undoes_normalising(values: Tensor, per: str) -> None:
    scaling = LatentScaling.from_statistics(statistics_of(values), per=per)
    assert_close(scaling.restore(scaling.normalise(values)), values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("convention", ["rae", "diffusers"])
def test_a_channel_without_variance_stays_finite(convention: str) -> None:
    values = torch.randn(6, 2, 3, 3)
    values[:, 0] = 4.0
    normal = LatentScaling.from_statistics(statistics_of(values), convention=convention).normalise(values)
    assert torch.equal(normal[:, 0], torch.zeros(6, 3, 3))
    assert normal.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_latents_are_scaled_in_at_least_float32(dtype: torch.dtype) -> None:
    scaling = LatentScaling.identity((3,))
    expected = torch.promote_types(dtype, torch.float32)
    values = torch.zeros(2, 3, dtype=dtype)
    assert scaling.normalise(values).dtype == scaling.restore(values).dtype == expected


@pytest.mark.parametrize("shape", [(5,), (3, 1, 1), (3, 2, 4)])
def test_config_and_state_build_the_same_scaling_again(shape: tuple[int, ...]) -> None:
    scaling = LatentScaling(torch.randn(shape), torch.rand(shape) + 0.1)
    options = dict(scaling.config)
    again = LatentScaling.identity(options.pop("shape"), **options)  # type: ignore[arg-type]
    again.load_state_dict(scaling.state_dict())
    values = torch.randn(2, shape[0], *([2, 4] if len(shape) == 3 else []))
    assert torch.equal(again.normalise(values), scaling.normalise(values))
    assert list(scaling.parameters()) == []


def test_a_scaling_that_cannot_be_is_refused() -> None:
    one = torch.ones(3)
    with pytest.raises(ShapeError, match="one shape"):
        LatentScaling(one, torch.ones(4))
    for mean, std in ((one, 0 * one), (one, -one), (one / 0, one), (one, one * float("nan"))):
        with pytest.raises(InvalidOptionError, match="finite"):
            LatentScaling(mean, std)
    statistics = statistics_of(torch.randn(4, 3))
    with pytest.raises(UnknownNameError, match="channel, position"):
        LatentScaling.from_statistics(statistics, per="chanel")
    with pytest.raises(UnknownNameError, match="rae, diffusers"):
        LatentScaling.from_statistics(statistics, convention="rea")
    with pytest.raises(InvalidOptionError, match="no latents"):
        LatentScaling.from_statistics(LatentStatistics())


@pytest.mark.parametrize(
    ("shape", "latent"), [((3,), (4,)), ((3, 1, 1), (4, 2, 2)), ((3, 2, 2), (3, 2, 3)), ((3,), (3, 2, 2))]
)
def test_a_scaling_for_other_latents_is_refused(shape: tuple[int, ...], latent: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="The scaling is for latents"):
        LatentScaling.identity(shape).check_fit(latent)
