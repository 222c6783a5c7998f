"""The order of an epoch: random, but within a window, so that what is read lies close together."""

import math
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import torch
from torch import Tensor
from torch.utils.data import Sampler
from typing_extensions import override

from transfervae.errors import InvalidOptionError
from transfervae.shapes import check_positive, check_seed

SEED_STRIDE = 1_000_003

Key = int | tuple[int, bool]
"""A row, or a row and whether it is mirrored."""


class WindowSampler(Sampler[Key]):
    """Deals the rows of an epoch to processes, in an order that depends on seed, epoch and number of processes alone.

    Rows that are not in shards, or whose shards all fit into one window, are shuffled freely, and dealt like cards.

    Of a larger set, the shards are shuffled and dealt to the processes; each takes a window of its own shards at a time
    and shuffles their rows. So a process maps a window only, and reads whole shards: the set streams from disk. Where
    processes would get unequally many rows of a window, some rows change hands.

    Every process gets equally many rows; if they do not come out even, some are dealt twice.
    """

    def __init__(
        self,
        rows: Sequence[int],
        *,
        rows_per_shard: int | None = None,
        shards_per_window: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        flips: bool = False,
    ) -> None:
        """Make a sampler at epoch 0.

        Args:
            rows: The rows to deal, ascending; not all need to be dealt: held-out ones are left out.
            rows_per_shard: Consecutive rows that lie in one file; None if it makes no difference.
            shards_per_window: How many shards are shuffled together.
            rank: This process.
            world: Number of processes.
            seed: Of the order and the mirroring.
            flips: Deal (row, mirrored) instead of rows, each mirrored with probability 1/2.

        Raises:
            InvalidOptionError: If a number is out of range.
        """
        check_positive(world=world, shards_per_window=shards_per_window)
        check_seed(seed)
        if not 0 <= rank < world:
            raise InvalidOptionError(f"rank must be from 0 to {world - 1}, got {rank}.")
        self._rows = torch.as_tensor(rows, dtype=torch.int64)
        self._window = None if rows_per_shard is None else rows_per_shard * shards_per_window
        self._rows_per_shard = rows_per_shard or 1
        self._shards_per_window = shards_per_window
        self._rank = rank
        self._world = world
        self._seed = seed
        self._flips = flips
        self._epoch = 0

    def __len__(self) -> int:
        """Number of rows that this process gets in an epoch."""
        return math.ceil(len(self._rows) / self._world)

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; each has an order of its own."""
        self._epoch = epoch

    @property
    def epoch_seed(self) -> int:
        """Seed of the current epoch on this process."""
        return epoch_seed(self._seed, self._epoch, self._rank)

    @override
    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed((self._seed + self._epoch) % 2**63)
        count = len(self._rows)
        is_one_window = self._window is None or count <= self._world or int(self._rows[-1]) < self._window
        yield from self._deal_rows(generator) if is_one_window else self._deal_shards(generator)

    def _deal_rows(self, generator: torch.Generator) -> Iterator[Key]:
        order = list(self._shuffled(self._rows, generator))
        return islice(cycle(order), self._rank, len(self) * self._world, self._world)

    def _deal_shards(self, generator: torch.Generator) -> Iterator[Key]:
        present, counts = torch.unique_consecutive(self._rows // self._rows_per_shard, return_counts=True)
        shards = self._rows.split(counts.tolist())
        own = torch.Generator().manual_seed(self.epoch_seed)
        dealt, key = 0, None
        for window in torch.randperm(len(present), generator=generator).split(self._shards_per_window * self._world):
            hands = [window[rank :: self._world].tolist() for rank in range(self._world)]
            rows = self._trade(hands, shards, first=dealt % self._world)
            for key in self._shuffled(rows, own):
                yield key
            dealt += int(counts[window].sum())
        if dealt % self._world and (self._rank >= dealt % self._world) and key is not None:
            yield key

    def _trade(self, hands: Sequence[Sequence[int]], shards: Sequence[Tensor], *, first: int) -> Tensor:
        """This process's rows of a window: its shards', but for what makes processes' numbers even."""
        sizes = [sum(len(shards[shard]) for shard in hand) for hand in hands]
        base, extra = divmod(sum(sizes), self._world)
        targets = [base + ((rank - first) % self._world < extra) for rank in range(self._world)]
        lacking = [max(0, target - size) for target, size in zip(targets, sizes, strict=True)]
        own = _join([shards[shard] for shard in hands[self._rank]])
        if not lacking[self._rank]:
            return own[: targets[self._rank]]
        spare = [_join([shards[shard] for shard in hand])[target:] for hand, target in zip(hands, targets, strict=True)]
        begin = sum(lacking[: self._rank])
        return _join([own, _join(spare)[begin : begin + lacking[self._rank]]])

    def _shuffled(self, rows: Tensor, generator: torch.Generator) -> Iterator[Key]:
        shuffled = rows[torch.randperm(len(rows), generator=generator)].tolist()
        if not self._flips:
            return iter(shuffled)
        mirrored = torch.rand(len(rows), generator=generator) < 0.5
        return zip(shuffled, mirrored.tolist(), strict=True)


def _join(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.empty(0, dtype=torch.int64)


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Seed of an epoch on one of several processes."""
    return ((seed + epoch) * SEED_STRIDE + rank) % 2**63
