"""Which precision and memory layout a run takes."""

import os
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from rich.console import Console

from transfervae.execution import LAYOUTS, PRECISIONS, Execution, choose_execution, measure_executions
from transfervae.model import TransferVAE
from transfervae.training.engine import is_first_process
from transfervae.training.options import AUTO, OWN_PRECISIONS, EngineOptions

LIGHTNING_NAMES: Mapping[str, str] = MappingProxyType({"float32": "32-true", "bfloat16": "bf16-mixed"})
VARIABLE = "TRANSFERVAE_EXECUTION"
"""How the first process tells those that it starts what it has measured."""


class Settled(NamedTuple):
    """Engine options without any "auto" for precision and memory format, and what they mean for the model."""

    engine: EngineOptions
    execution: Execution


def settle_execution(
    engine: EngineOptions, vae: TransferVAE, trainer: pl.Trainer, *, batch_size: int, console: Console
) -> Settled:
    """Replace "auto" by what a short measurement on the run's device finds fastest, and say so.

    One process measures. Where processes are started apart, and so could not agree, float32 in contiguous memory is
    taken.

    Args:
        engine: The options.
        vae: The model; it is on the run's device afterwards if it was measured.
        trainer: The run's trainer.
        batch_size: Images a step.
        console: Where to print.
    """
    precisions, layouts = _open_questions(engine)
    way = Execution(precisions[-1], layouts[-1])
    if len(precisions) * len(layouts) > 1:
        precision, _, layout = os.environ.get(VARIABLE, "").partition(",")
        if not is_first_process() and precision in precisions and layout in layouts:
            way = Execution(precision, layout)
        elif _can_tell_others(trainer):
            way = _measure(vae.to(trainer.strategy.root_device), precisions, layouts, batch_size, console)
            if trainer.world_size > 1:
                os.environ[VARIABLE] = ",".join(way)
        elif is_first_process():
            console.print(
                f"runs in {way.precision} and {way.layout} memory: processes that are started apart do not measure"
                " which is fastest; --precision and --memory-format choose",
                soft_wrap=True,
            )
    precision = LIGHTNING_NAMES[way.precision] if engine.precision in OWN_PRECISIONS else engine.precision
    return Settled(replace(engine, precision=precision, memory_format=way.layout), way)


def _open_questions(engine: EngineOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Precisions and layouts to choose from, what is plain last."""
    if engine.precision not in OWN_PRECISIONS:  # the engine's own business
        layout = LAYOUTS[-1] if engine.memory_format == AUTO else engine.memory_format
        return ("float32",), (layout,)
    precision = OWN_PRECISIONS[engine.precision]
    layouts = LAYOUTS if engine.memory_format == AUTO else (engine.memory_format,)
    return (tuple(PRECISIONS) if precision is None else (precision,)), layouts


def _can_tell_others(trainer: pl.Trainer) -> bool:
    if trainer.world_size == 1:
        return True
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and not environment.creates_processes_externally


def _measure(
    vae: TransferVAE, precisions: tuple[str, ...], layouts: tuple[str, ...], batch_size: int, console: Console
) -> Execution:
    trials = measure_executions(vae, batch_size=batch_size, precisions=precisions, layouts=layouts)
    way = choose_execution(trials)
    speeds = ", ".join(
        f"{trial.execution.precision} {trial.execution.layout} {trial.images_per_second:.0f}" for trial in trials
    )
    console.print(
        f"runs in {way.precision} and {way.layout} memory, by a short measurement (images/s: {speeds})", soft_wrap=True
    )
    return way
