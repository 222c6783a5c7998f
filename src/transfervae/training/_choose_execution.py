"""Which precision and memory format a run takes."""

import os
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from rich.console import Console

from transfervae.execution import MEMORY_FORMATS, PRECISIONS, Execution, choose_execution, measure_executions
from transfervae.model import TransferVAE
from transfervae.training.engine import is_first_process
from transfervae.training.options import AUTO, OWN_PRECISIONS, EngineOptions

LIGHTNING_NAMES: Mapping[str, str] = MappingProxyType({"float32": "32-true", "bfloat16": "bf16-mixed"})
VARIABLE = "TRANSFERVAE_EXECUTION"
"""How the first process tells those that it starts what it has measured."""


class ChosenExecution(NamedTuple):
    """Engine options without any "auto" for precision and memory format, and what they mean for the model."""

    engine: EngineOptions
    execution: Execution


def choose_run_execution(
    engine: EngineOptions, vae: TransferVAE, trainer: pl.Trainer, *, batch_size: int, console: Console
) -> ChosenExecution:
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
    precisions, memory_formats = _open_questions(engine)
    execution = Execution(precisions[-1], memory_formats[-1])
    if len(precisions) * len(memory_formats) > 1:
        precision, _, memory_format = os.environ.get(VARIABLE, "").partition(",")
        if not is_first_process() and precision in precisions and memory_format in memory_formats:
            execution = Execution(precision, memory_format)
        elif _can_tell_others(trainer):
            execution = _measure(vae.to(trainer.strategy.root_device), precisions, memory_formats, batch_size, console)
            if trainer.world_size > 1:
                os.environ[VARIABLE] = ",".join(execution)
        elif is_first_process():
            console.print(
                f"runs in {execution.precision} and {execution.memory_format} memory: processes that are started apart"
                " do not measure which is fastest; --engine.precision and --engine.memory-format choose",
                soft_wrap=True,
            )
    precision = LIGHTNING_NAMES[execution.precision] if engine.precision in OWN_PRECISIONS else engine.precision
    return ChosenExecution(replace(engine, precision=precision, memory_format=execution.memory_format), execution)


def _open_questions(engine: EngineOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Precisions and memory_formats to choose from, what is plain last."""
    if engine.precision not in OWN_PRECISIONS:  # the engine's own business
        memory_format = MEMORY_FORMATS[-1] if engine.memory_format == AUTO else engine.memory_format
        return ("float32",), (memory_format,)
    precision = OWN_PRECISIONS[engine.precision]
    memory_formats = MEMORY_FORMATS if engine.memory_format == AUTO else (engine.memory_format,)
    return (tuple(PRECISIONS) if precision is None else (precision,)), memory_formats


def _can_tell_others(trainer: pl.Trainer) -> bool:
    if trainer.world_size == 1:
        return True
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and not environment.creates_processes_externally


def _measure(
    vae: TransferVAE, precisions: tuple[str, ...], memory_formats: tuple[str, ...], batch_size: int, console: Console
) -> Execution:
    trials = measure_executions(vae, batch_size=batch_size, precisions=precisions, memory_formats=memory_formats)
    execution = choose_execution(trials)
    speeds = ", ".join(
        f"{trial.execution.precision} {trial.execution.memory_format} {trial.images_per_second:.0f}" for trial in trials
    )
    console.print(
        f"runs in {execution.precision} and {execution.memory_format} memory, by a short measurement"
        f" (images/s: {speeds})",
        soft_wrap=True,
    )
    return execution
