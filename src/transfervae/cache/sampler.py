"""The order of an epoch: random, but within a window, so that what is read lies close together."""

import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice

import torch
from torch import Tensor
from torch.utils.data import Sampler
from typing_extensions import override

Key = int | tuple[int, bool]
"""A row, or a row and whether it is mirrored."""


class WindowSampler(Sampler[Key]):
    """Deals the rows of an epoch to processes, in an order that depends on seed and epoch alone.

    Shards are shuffled, taken together some at a time (a window), and the rows of a window shuffled. Only a window
    needs to be in memory, so that a set that is larger than it streams from disk. Rows that are not in shards, or all
    in one window, are shuffled freely.

    Every process gets equally many; if they do not come out even, the first ones are dealt again.
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
        """
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

    @override
    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed((self._seed + self._epoch) % 2**63)
        order = self._order(generator)
        first = list(islice(order, self._world))
        total = len(self) * self._world
        repeated = (first * self._world)[: total - len(self._rows)]
        return islice(chain(first, order, repeated), self._rank, total, self._world)

    def _order(self, generator: torch.Generator) -> Iterator[Key]:
        for rows in self._windows(generator):
            shuffled = rows[torch.randperm(len(rows), generator=generator)].tolist()
            if self._flips:
                mirrored = torch.rand(len(rows), generator=generator) < 0.5
                yield from zip(shuffled, mirrored.tolist(), strict=True)
            else:
                yield from shuffled

    def _windows(self, generator: torch.Generator) -> Iterator[Tensor]:
        if not len(self._rows) or self._window is None or int(self._rows[-1]) < self._window:
            yield self._rows
            return
        shards = self._rows // self._rows_per_shard
        present, counts = torch.unique_consecutive(shards, return_counts=True)
        starts = torch.cumsum(counts, 0) - counts
        for chosen in torch.randperm(len(present), generator=generator).split(self._shards_per_window):
            yield torch.cat([self._rows[starts[i] : starts[i] + counts[i]] for i in chosen.tolist()])
