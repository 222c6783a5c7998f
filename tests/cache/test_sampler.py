from collections import Counter
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from transfervae.cache import WindowSampler
from transfervae.errors import InvalidOptionError


class Deal(NamedTuple):
    """Arguments of a sampler but for rank, and an epoch."""

    rows: list[int]
    rows_per_shard: int | None
    shards_per_window: int
    world: int
    seed: int
    flips: bool
    epoch: int


ROWS = st.sets(st.integers(0, 60), max_size=50).map(sorted)
DEALS = st.builds(
    Deal,
    rows=ROWS,
    rows_per_shard=st.none() | st.integers(1, 9),
    shards_per_window=st.integers(1, 4),
    world=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
    flips=st.booleans(),
    epoch=st.integers(0, 5),
)
SHARDED = DEALS.map(lambda deal: deal._replace(rows_per_shard=deal.rows_per_shard or 3))


def dealt(deal: Deal, rank: int = 0) -> list[Any]:
    options = deal._asdict()
    epoch = options.pop("epoch")
    sampler = WindowSampler(**options, rank=rank)
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert len(keys) == len(sampler)
    return keys


def rows_of(keys: list[Any]) -> list[int]:
    return [key[0] if isinstance(key, tuple) else key for key in keys]


@given(deal=DEALS)
def test_every_row_is_dealt_once_but_for_the_padding(deal: Deal) -> None:
    hands = [rows_of(dealt(deal, rank)) for rank in range(deal.world)]
    assert len({len(hand) for hand in hands}) == 1
    counts = Counter(chain(*hands))
    assert sorted(counts) == deal.rows
    padding = -len(deal.rows) % deal.world
    assert sum(counts.values()) == len(deal.rows) + padding
    if padding <= len(deal.rows):
        assert sum(count - 1 for count in counts.values()) == padding
        assert max(counts.values(), default=1) <= 2


@given(deal=DEALS)
def test_processes_share_one_order_of_a_set_in_one_window(deal: Deal) -> None:
    deal = deal._replace(rows_per_shard=None)
    alone = dealt(deal._replace(world=1))
    together = [key for turn in zip_longest(*(dealt(deal, rank) for rank in range(deal.world))) for key in turn]
    assert together[: len(alone)] == alone


@given(deal=DEALS)
def test_the_order_depends_on_seed_and_epoch_alone(deal: Deal) -> None:
    options = deal._asdict()
    epoch = options.pop("epoch")
    sampler = WindowSampler(**options)
    for before in (epoch + 1, epoch):
        sampler.set_epoch(before)
        first = list(sampler)
    assert first == list(sampler) == dealt(deal)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    deal = Deal(list(range(60)), 6, 2, world=1, seed=3, flips=True, epoch=0)
    orders = [dealt(deal._replace(seed=seed, epoch=epoch)) for seed, epoch in ((3, 0), (3, 1), (3, 2), (9, 0))]
    assert len({tuple(order) for order in orders}) == 4
    mirrored = [{row for row, is_mirrored in order if is_mirrored} for order in orders]
    assert len({frozenset(rows) for rows in mirrored}) == 4


@given(deal=DEALS.filter(lambda deal: len(deal.rows) > 0))
def test_one_window_is_shuffled_as_torch_does(deal: Deal) -> None:
    deal = deal._replace(rows_per_shard=None, flips=False, seed=deal.seed % 2**62)
    for rank in range(deal.world):
        oracle: DistributedSampler[int] = DistributedSampler(
            deal.rows,  # type: ignore[arg-type]
            num_replicas=deal.world,
            rank=rank,
            seed=deal.seed,
        )
        oracle.set_epoch(deal.epoch)
        assert dealt(deal, rank) == [deal.rows[place] for place in oracle]


@given(deal=DEALS)
def test_a_window_that_holds_all_makes_no_difference(deal: Deal) -> None:
    wide = deal._replace(rows_per_shard=deal.rows_per_shard or 4, shards_per_window=61)
    assert dealt(wide) == dealt(deal._replace(rows_per_shard=None))


@given(deal=SHARDED)
def test_only_the_shards_of_a_window_interleave(deal: Deal) -> None:
    assert deal.rows_per_shard is not None
    shards = [row // deal.rows_per_shard for row in rows_of(dealt(deal._replace(world=1)))]
    windows = {frozenset(shards[shards.index(shard) : len(shards) - shards[::-1].index(shard)]) for shard in shards}
    assert all(len(window) <= deal.shards_per_window for window in windows)


def test_processes_of_an_even_set_share_no_shard() -> None:
    deal = Deal(list(range(600)), 50, 2, world=3, seed=1, flips=False, epoch=0)
    shards = [{row // 50 for row in rows_of(dealt(deal, rank))} for rank in range(3)]
    assert [len(own) for own in shards] == [4, 4, 4]
    assert set().union(*shards) == set(range(12))


def test_the_rows_of_a_window_are_mixed() -> None:
    deal = Deal(list(range(400)), 50, 4, world=1, seed=0, flips=False, epoch=0)
    shards = [row // 50 for row in dealt(deal)]
    for window in (shards[:200], shards[200:]):
        assert set(window[:40]) == set(window[-40:]) == set(window)
        assert len(set(window)) == 4


def test_about_half_are_mirrored_and_each_item_at_times() -> None:
    deal = Deal(list(range(500)), 60, 3, world=1, seed=1, flips=True, epoch=0)
    draws = [dict(dealt(deal._replace(epoch=epoch))) for epoch in range(20)]
    total = sum(sum(draw.values()) for draw in draws)
    assert abs(total - 5000) < 5 * (10_000 * 0.25) ** 0.5
    for row in range(500):
        assert 0 < sum(draw[row] for draw in draws) < 20


@pytest.mark.parametrize("options", [{"rank": -1}, {"rank": 2}, {"world": 0}, {"seed": -1}, {"shards_per_window": 0}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError):
        WindowSampler(range(4), **({"world": 2} | options))
