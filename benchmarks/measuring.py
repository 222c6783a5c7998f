"""Timing several contenders in turn, round by round, and what follows from it."""

import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from protocol import Contender, Worker, WorkerError

CEILINGS = "machine"
"""Name of the contender that measures what the machine can do."""

LONG = 5.0
"""Seconds of a step after which it needs no second one to warm up."""

OWN = "transfervae"
OWN_PREFIX = "own "


class Pace(NamedTuple):
    """How long to measure.

    Attributes:
        rounds: How often all contenders are timed in turn.
        seconds: A stage is repeated until a round of it takes about so long.
    """

    rounds: int
    seconds: float


@dataclass
class Series:
    """One stage of one contender, round by round; peaks in bytes."""

    contender: Contender
    stage: str
    images: int
    flops: float | None
    traffic: float | None
    steps: int = 1
    rates: list[float] = field(default_factory=list)
    host_peak: int | None = None
    device_peak: int | None = None

    def add(self, worker: Worker) -> None:
        """Time a round."""
        answer = worker.time(self.stage, self.steps)
        self.rates.append(self.steps / answer.seconds)
        self.host_peak = _larger(self.host_peak, answer.host_peak)
        self.device_peak = _larger(self.device_peak, answer.device_peak)


@dataclass(frozen=True)
class Group:
    """What was measured together.

    Attributes:
        series: One a contender and stage.
        about: What each contender said of itself, by name.
        skipped: Contenders that were not measured, with the reason.
    """

    series: list[Series]
    about: dict[str, dict[str, Any]]
    skipped: dict[str, str]


def measure(contenders: Sequence[Contender], pace: Pace) -> Group:
    """Start all contenders, warm them up, and time them in turn; those that go first change with each round.

    Raises:
        SystemExit: If a contender that has no hint what to install does not start, or breaks down at once.
        WorkerError: If one breaks down later.
    """
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        workers = [worker for contender in contenders if (worker := _start(contender, stack, skipped))]
        _leave_out_unequal(workers, skipped)
        plan = [entry for worker in workers for entry in _warm_up(worker, pace.seconds, skipped)]
        for number in range(pace.rounds):
            for worker, series in plan if number % 2 else reversed(plan):
                series.add(worker)
    about = {worker.contender.name: {**worker.hello, "stages": None} for worker in workers}
    return Group([series for _, series in plan], about, skipped)


def to_rows(group: Group) -> Iterator[dict[str, Any]]:
    """One plain row a contender and stage; the ceilings are in the shares and have none of their own."""
    for series in group.series:
        if series.contender.name == CEILINGS:
            continue
        flops = series.flops or _same_work(series, group)
        yield {
            "contender": series.contender.name,
            "case": dict(series.contender.case),
            "precision": series.contender.precision,
            "layout": series.contender.layout,
            "stage": series.stage,
            "images_per_second": series.images * statistics.median(series.rates),
            "slowest": series.images * min(series.rates),
            "fastest": series.images * max(series.rates),
            "rounds": len(series.rates),
            "steps_per_round": series.steps,
            "ratios": {name: _ratio(series, other) for name, other in references(series, group.series).items()},
            "host_peak_bytes": series.host_peak,
            "device_peak_bytes": series.device_peak,
            **_shares("flops", flops, series, _ceiling(group, f"matrix product {series.contender.precision}")),
            **_shares("bytes", series.traffic, series, _ceiling(group, "copy")),
        }


def ceilings(group: Group) -> dict[str, dict[str, float]]:
    """Rates of the machine's own stages: FLOP/s of products, bytes/s of the copy."""
    own = [series for series in group.series if series.contender.name == CEILINGS]
    return {series.stage: _spread([rate * _work(series) for rate in series.rates]) for series in own}


def references(series: Series, others: Iterable[Series]) -> dict[str, Series]:
    """What a stage is compared with: the baselines' same stage, and what of our own it is made of."""
    if series.contender.name != OWN:
        return {}
    compared = {}
    for other in others:
        if other.contender == series.contender and OWN_PARTS.get(series.stage) == other.stage:
            compared[OWN_PREFIX + other.stage] = other
        is_baseline = other.contender.name != OWN and other.contender.case == series.contender.case
        if is_baseline and TO_BASELINE.get(series.stage, series.stage) == other.stage:
            compared[other.contender.name] = other
    return compared


TO_BASELINE: Mapping[str, str] = {"train (cached)": "train (live)", "head and decoder": "train (live)"}
"""A baseline has one training step, the whole."""

OWN_PARTS: Mapping[str, str] = {"train (cached)": "head and decoder", "cache build": "backbone"}


def _start(contender: Contender, stack: ExitStack, skipped: dict[str, str]) -> Worker | None:
    try:
        return stack.enter_context(Worker(contender))
    except WorkerError as error:
        if contender.hint is None:
            sys.exit(f"{contender.name} did not start: {error}")
        _skip(contender, f"{error} ({contender.hint})", skipped)
    return None


def _leave_out_unequal(workers: list[Worker], skipped: dict[str, str]) -> None:
    """A baseline that trains another number of parameters is no baseline."""
    own = [worker for worker in workers if worker.contender.name == OWN]
    for worker in [worker for worker in workers if "trainable" in worker.hello and worker not in own]:
        trained = worker.hello["trainable"]
        wanted = [mine.hello["trainable"] for mine in own if mine.contender.case == worker.contender.case]
        if wanted and trained not in wanted:
            _skip(worker.contender, f"it trains {trained} parameters, the library {wanted[0]}", skipped)
            workers.remove(worker)


def _skip(contender: Contender, reason: str, skipped: dict[str, str]) -> None:
    skipped[contender.name] = reason
    print(f"{contender.name}: not measured: {reason}", flush=True)


def _warm_up(worker: Worker, seconds: float, skipped: dict[str, str]) -> list[tuple[Worker, Series]]:
    """All stages of a worker, run before; none if it breaks down and is not needed."""
    plan = []
    try:
        for stage, said in worker.stages.items():
            steps = _calibrate(worker, stage, seconds)
            plan.append(
                (worker, Series(worker.contender, stage, said["images"], said["flops"], said["traffic"], steps))
            )
    except WorkerError as error:
        if worker.contender.hint is None:
            sys.exit(f"{worker.contender.name} broke down: {error}")
        _skip(worker.contender, str(error), skipped)
        return []
    return plan


def _calibrate(worker: Worker, stage: str, seconds: float) -> int:
    first = worker.time(stage, 1).seconds
    return 1 if first > LONG else max(1, round(seconds / worker.time(stage, 1).seconds))


def _ratio(series: Series, other: Series) -> dict[str, float]:
    pairs = zip(series.rates, other.rates, strict=True)
    return _spread([series.images * mine / (other.images * theirs) for mine, theirs in pairs])


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def _same_work(series: Series, group: Group) -> float | None:
    """Operations of a baseline that does not count them: those of our same stage."""
    for other in group.series:
        if (other.contender.name, other.contender.case, other.stage) == (OWN, series.contender.case, series.stage):
            return None if other.flops is None else other.flops * series.images / other.images
    return None


def _shares(kind: str, work: float | None, series: Series, ceiling: Series | None) -> dict[str, float | None]:
    rate, share = f"{kind}_per_second", f"share_of_{'matrix_product' if kind == 'flops' else 'copy'}"
    if not work:
        return {rate: None, share: None}
    rates = [work * value for value in series.rates]
    if ceiling is None:
        return {rate: statistics.median(rates), share: None}
    pairs = zip(rates, ceiling.rates, strict=True)
    shares = [value / (_work(ceiling) * most) for value, most in pairs]
    return {rate: statistics.median(rates), share: statistics.median(shares)}


def _ceiling(group: Group, stage: str) -> Series | None:
    own = [series for series in group.series if (series.contender.name, series.stage) == (CEILINGS, stage)]
    return own[0] if own else None


def _work(series: Series) -> float:
    return series.flops or series.traffic or 0.0


def _larger(first: int | None, second: int | None) -> int | None:
    return second if first is None else max(first, second or 0)
