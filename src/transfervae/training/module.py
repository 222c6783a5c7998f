"""The training step, for PyTorch Lightning."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, MetricCollection
from typing_extensions import override

from transfervae.cache import CachedItem
from transfervae.cache.sampler import epoch_seed
from transfervae.errors import CheckpointError, DivergedError, InvalidOptionError
from transfervae.execution import Execution
from transfervae.model import TransferVAE, VAEOutput, evaluation_mode
from transfervae.objectives import Objective, ObjectiveValue, Term
from transfervae.objectives.term import EncodedOutput, ModelOutput
from transfervae.shapes import Images, unit_images
from transfervae.training._ema import WeightAverage
from transfervae.training._guard import StepGuard
from transfervae.training.options import OptimizerOptions

FUSED = ("cpu", "cuda")
"""Where Adam can change all parameters in one pass over memory."""

OBJECTIVE_PREFIX = "objective."
AVERAGE_PREFIX = "average."
GUARD_PREFIX = "guard."
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}

Batch = Tensor | CachedItem
"""Images, 8 bits or floating point in [0, 1], or images in 8 bits with the backbone's features of them."""


class VAEModule(pl.LightningModule):
    """Trains head, decoder and the objective's terms on images, or on images with their cached features.

    Every epoch draws its noise from (seed, epoch, process), so that a run that resumes at an epoch's start goes on as
    if it had never stopped. Checkpoints hold no weights of the backbone.

    The optimisers are stepped here rather than by the engine, so that a term with an optimiser of its own fits in: the
    model's step comes first, then each such term's, on the same batch. With such terms a step whose loss is not finite,
    or more than ten times its running mean, is skipped and counted: adversarial training is prone to them.

    Attributes:
        vae: The model.
        objective: What is minimised.
        metrics: What is computed on held-out images.
        optimizer: Options of the model's optimiser.
        execution: Precision and memory format.
        weights: The terms' weights at the last step.
    """

    def __init__(
        self,
        vae: TransferVAE,
        objective: Objective,
        metrics: MetricCollection,
        *,
        optimizer: OptimizerOptions | None = None,
        seed: int = 0,
        execution: Execution | None = None,
        compiled: bool = False,
    ) -> None:
        """Wrap a model.

        Args:
            vae: The model; its head and decoder are trained in place.
            objective: What is minimised.
            metrics: What is computed on held-out images; updated with (`VAEOutput`, images).
            optimizer: Options of the model's optimiser.
            seed: Of the noise.
            execution: Precision and memory format; as the trainer and the model have them if None.
            compiled: Run the model through `torch.compile`. Noise then comes from torch's global random state, which
                is seeded at each epoch's start.

        Raises:
            InvalidOptionError: If a term's weight is adaptive, and the model compiled or without a last layer.
        """
        super().__init__()
        self.automatic_optimization = False
        self.vae = vae if execution is None else vae.to(memory_format=execution.torch_memory_format)
        self.objective = objective
        objective.attach(vae.backbone)
        self.metrics = metrics
        self.optimizer = optimizer or OptimizerOptions()
        self.execution = execution or Execution()
        self._latent_size = math.prod(vae.latent_shape)
        self.weights = objective.final_weights(self._latent_size)
        self._seed = seed
        self._compiled = compiled
        self._forward: dict[str, Callable[..., VAEOutput]] = {
            "images": torch.compile(vae.forward) if compiled else vae.forward,
            "features": torch.compile(vae.forward_from_features) if compiled else vae.forward_from_features,
        }
        self._own_terms = objective.terms_with_optimizer()
        self._starts = {name: entry.start for name, entry in objective.items()}
        self._train_means = _means_of(objective, [f"own/{name}" for name in self._own_terms])
        self._val_means = _means_of(objective)
        self._guard = StepGuard(["model", *self._own_terms])
        self._first_wrong: Tensor | None = None
        self._learning: set[str] = set()
        """Terms whose own optimiser has made a step in this epoch."""
        is_adaptive = any(entry.term.is_adaptive for _name, entry in objective.items())
        self._last_layer = last_layer_of(vae.decoder) if is_adaptive else None
        if compiled and is_adaptive:
            raise InvalidOptionError(
                "An adaptive weight takes gradients twice, which a compiled model cannot give; leave --engine.compile"
                " out, or give the term adaptive=False."
            )
        self._own_parameters: list[nn.Parameter] = []
        self._generator: torch.Generator | None = None
        ema = self.optimizer.ema
        self._average = None if ema is None else WeightAverage(self.vae.trainable_parameters(), ema)

    @override
    def training_step(self, batch: Batch, index: int) -> None:
        """One step: forward, objective, backward; and its terms noted without waiting for the device."""
        batches = int(self.trainer.num_training_batches)
        step = self.current_epoch * batches + index
        steps = batches * int(self.trainer.max_epochs or 1)
        self.weights = self.objective.weights_at(step, batches, self._latent_size, steps=steps)
        self._require_own_gradients(requires_grad=False)  # the model's step is not to leave gradients in a term
        output, images = self._run(batch)
        value = self._objective_of(_with_features(output, batch), images, self.weights, self._last_layer)
        self._note_wrong(value, step)
        if self._may_step(value):
            self._note(self._train_means, value, len(images))
            self.manual_backward(value.total / self.optimizer.accumulate)
        if (index + 1) % self.optimizer.accumulate == 0 or index + 1 == batches:
            self._step_model()
        if self._own_terms:
            self._step_terms(output, images, step, batches, steps)

    @override
    def on_validation_start(self) -> None:
        """Evaluate the averaged weights, if there are any."""
        self._restoring = self.evaluated_weights()
        self._restoring.__enter__()

    @override
    def validation_step(self, batch: Batch, index: int) -> None:
        """Note the objective, at its final weights, and the metrics of one held-out batch."""
        output, images = self._run(batch)
        self._note(self._val_means, self._objective_of(_with_features(output, batch), images, None), len(images))
        self.metrics.update(output, images)

    @override
    def on_validation_end(self) -> None:
        """Go on with the raw weights."""
        self._restoring.__exit__(None, None, None)

    @override
    def configure_optimizers(self) -> Any:
        """The model's optimiser with its rate's schedule, and those of terms that have their own."""
        options = self.optimizer
        trained = [*self.vae.trainable_parameters(), *self.objective.trainable_parameters()]
        parameters = [parameter for parameter in trained if parameter.requires_grad]
        optimizer = OPTIMIZERS[options.name](
            parameters,
            lr=options.learning_rate,
            betas=cast(tuple[float, float], options.betas),
            weight_decay=options.weight_decay,
            fused=self.device.type in FUSED,
        )
        scheduler = LambdaLR(optimizer, lambda step: self._rate(step))  # noqa: PLW0108 - a method would be saved
        own = [_made_optimizer(term) for term in self._own_terms.values()]
        for group in (group for each in own for group in each.param_groups):
            group.setdefault("initial_lr", group["lr"])
        groups = [group for each in own for group in each.param_groups]
        self._own_parameters = [value for group in groups for value in group["params"] if value.requires_grad]
        return [optimizer, *own], [{"scheduler": scheduler, "interval": "step"}]

    @override
    def on_fit_start(self) -> None:
        """Bring the averaged weights to the device."""
        if self._average is not None:
            self._average.move()

    @override
    def on_train_start(self) -> None:
        """Bring what a checkpoint gave the optimisers into the parameters' memory layout: fused steps rely on it."""
        for optimizer in self._optimizers():
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    @override
    def on_train_epoch_start(self) -> None:
        """Start the epoch's own noise; torch's global one is for parts and transforms of one's own."""
        seed = epoch_seed(self._seed, self.current_epoch, self.global_rank)
        torch.manual_seed(seed)
        if not self._compiled:
            self._generator = torch.Generator(self.device).manual_seed(seed)

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """A context in which the model has the weights that are evaluated and saved: the averaged ones, if any."""
        return nullcontext() if self._average is None else self._average.in_place()

    def running_terms(self) -> dict[str, float]:
        """This process's mean of each term since the epoch began; waits for the device."""
        sums = {name: metric for name, metric in _entries(self._train_means) if name.startswith("term/")}
        return {name.removeprefix("term/"): (mean.mean_value / mean.weight).item() for name, mean in sums.items()}

    def epoch_figures(self) -> dict[str, float]:
        """The figures of the epoch that just ended, the same on every process; must be called on all of them.

        Raises:
            DivergedError: If a figure is not finite.
        """
        figures = {f"train/{name}": mean.compute().item() for name, mean in _entries(self._train_means)}
        figures |= {f"val/{name}": mean.compute().item() for name, mean in _entries(self._val_means)}
        figures |= {f"val/{name}": _as_number(name, value) for name, value in self.metrics.compute().items()}
        for metric in (*self._train_means.values(), *self._val_means.values(), self.metrics):
            metric.reset()  # type: ignore[operator]
        figures |= {f"train/own/{name}": 0.0 for name in self._own_terms.keys() - self._learning}
        self._check_finite(figures)
        if self._own_terms:
            figures["train/skipped"] = float(sum(self._guard.skipped.values()))
            batches = int(self.trainer.num_training_batches)
            name, count = max(self._guard.skipped.items(), key=lambda entry: entry[1])
            if count > batches / 2:
                raise DivergedError(
                    f"The run diverged: {count} of {batches} steps of {name} in epoch {self.current_epoch + 1} were"
                    " skipped, since their loss was not finite, or more than ten times its running mean;"
                    f"{self._describe_wrong()}"
                    " try a smaller learning rate, or a smaller weight of the adversarial term."
                )
            self._guard.skipped = dict.fromkeys(self._guard.skipped, 0)
        self._first_wrong = None
        self._learning.clear()
        return figures

    def _check_finite(self, figures: Mapping[str, float]) -> None:
        unweighted = {
            f"term/{name}" for name, weight in self.objective.final_weights(self._latent_size).items() if not weight
        }
        wrong = [name for name, value in figures.items() if not math.isfinite(value)]
        wrong = [name for name in wrong if name.partition("/")[2] not in unweighted]
        if not wrong:
            return
        first = self._find_first_wrong()
        of_first = [] if first is None else [f"train/term/{first[0]}"]
        name = next((name for name in (*of_first, *wrong) if name in wrong and "/term/" in name), wrong[0])
        found = f"{name} is {figures[name]} in epoch {self.current_epoch + 1}"
        if all(other.removeprefix("val/") in self.metrics for other in wrong):
            raise DivergedError(f"The metric {found}; the objective itself is finite.")
        raise DivergedError(
            f"The run diverged: {found};{self._describe_wrong()} try a smaller learning rate, or a higher precision."
        )

    def _note_wrong(self, value: ObjectiveValue, step: int) -> None:
        """Remember the first step of the epoch at which each term was not finite, without waiting for the device."""
        wrong = ~torch.stack([raw.detach().float() for raw in value.raw.values()]).isfinite()
        first = wrong.new_full(wrong.shape, -1, dtype=torch.long) if self._first_wrong is None else self._first_wrong
        self._first_wrong = torch.where(wrong & (first < 0), step, first)

    def _find_first_wrong(self) -> tuple[str, int] | None:
        """The weighted term that was the first not to be finite in this epoch, and the step, counted from 0."""
        if self._first_wrong is None:
            return None
        found = dict(zip(self.objective.term_names(), self._first_wrong.tolist(), strict=True))
        steps = {name: step for name, step in found.items() if step >= 0 and self.weights[name]}
        return min(steps.items(), key=lambda entry: entry[1]) if steps else None

    def _describe_wrong(self) -> str:
        first = self._find_first_wrong()
        return "" if first is None else f" the term {first[0]} was the first, at step {first[1] + 1};"

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint without the state of every optimiser and of the loop, which would be begun anew."""
        counts = {"optimizer_states": 1 + len(self._own_terms), "lr_schedulers": 1}
        missing = [
            name
            for name, count in counts.items()
            if not isinstance(checkpoint.get(name), list) or len(checkpoint[name]) != count
        ]
        loops = checkpoint.get("loops")
        missing += [] if isinstance(loops, Mapping) and "fit_loop" in loops else ["loops"]
        if missing:
            raise CheckpointError(f"The checkpoint's {missing[0]} are not those of this run.")

    @override
    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        """Head, decoder and so on, the objective's terms, and averaged weights; nothing of the backbone."""
        state: dict[str, Any] = dict(self.vae.trainable_state())
        state |= {f"{OBJECTIVE_PREFIX}{name}": value for name, value in self.objective.state_dict().items()}
        if self._average is not None:
            state |= {f"{AVERAGE_PREFIX}{name}": value for name, value in self._average.state_dict().items()}
        if self._own_terms:
            state |= {f"{GUARD_PREFIX}{name}": value for name, value in self._guard.state_dict().items()}
        return state

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gave, all or nothing."""
        objective, rest = _split(state_dict, OBJECTIVE_PREFIX)
        average, rest = _split(rest, AVERAGE_PREFIX)
        guard, model = _split(rest, GUARD_PREFIX)
        if objective.keys() != self.objective.state_dict().keys():
            raise CheckpointError("The checkpoint's terms are not those of this objective.")
        self.vae.load_trainable_state(model)
        self.objective.load_state_dict(objective)
        if self._average is not None:
            self._average.load_state_dict(average)
        if self._own_terms:
            self._guard.load_state_dict(guard)

    def _may_step(self, value: ObjectiveValue) -> bool:
        """Whether a step is to be made; what adaptive terms add may be large, and need only be finite."""
        if not self._own_terms:
            return True
        others = [weighted for name, weighted in value.weighted.items() if name not in self._own_terms]
        watched = torch.stack(others).sum() if others else value.total
        return self._guard.allows("model", torch.where(value.total.isfinite(), watched, value.total))

    def _step_model(self) -> None:
        optimizer = self._optimizers()[0]
        if self.optimizer.clip is not None:
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            if scaler is not None:  # gradients in half precision are scaled up until the step
                scaler.unscale_(optimizer.optimizer)
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        cast(LambdaLR, self.lr_schedulers()).step()
        if self._average is not None:
            self._average.update()

    def _step_terms(self, output: VAEOutput, images: Images, step: int, batches: int, steps: int) -> None:
        """One step of each term that has an optimiser, on what the model gave before its step."""
        detached = VAEOutput(output.reconstruction.detach(), output.posterior.detach(), output.latent.detach())
        self._require_own_gradients(requires_grad=True)
        for optimizer, (name, term) in zip(self._optimizers()[1:], self._own_terms.items(), strict=True):
            start = term.own_start(batches, steps)
            if (step < start) if start is not None else not self.weights[name]:
                continue
            start = self._starts[name](batches, steps) if start is None else start
            seen = self._decode_modes(detached) if term.sees_modes else detached
            with self.execution.autocast(images.device):
                loss = term.own_loss(seen, images)
            if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
                raise InvalidOptionError(f"own_loss of {name!r} must give one number with a gradient, got {loss!r}.")
            if not self._guard.allows(name, loss):
                continue
            if term.follows_schedule:
                rate = self._decay((step - start) / max(steps - start, 1))
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["initial_lr"]
            self._learning.add(name)
            self._mean(f"own/{name}").update(loss.detach(), loss.new_full((), len(images)))
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def _decode_modes(self, output: VAEOutput) -> VAEOutput:
        latent = output.posterior.mode()
        with evaluation_mode(self.vae), self.execution.autocast(latent.device):
            return VAEOutput(self.vae.decode(latent), output.posterior, latent)

    def _mean(self, name: str) -> MeanMetric:
        return cast(MeanMetric, self._train_means[name])

    def _require_own_gradients(self, *, requires_grad: bool) -> None:
        for parameter in self._own_parameters:
            parameter.requires_grad_(requires_grad)

    def _optimizers(self) -> list[LightningOptimizer]:
        optimizers: Any = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _rate(self, step: int) -> float:
        """Learning rate at a step, relative to the highest; the number of batches is known once training begins."""
        options = self.optimizer
        if step == 0:
            return 0.0 if options.warmup_epochs else 1.0
        batches = int(self.trainer.num_training_batches)
        per_epoch = math.ceil(batches / options.accumulate)
        warmup = options.warmup_epochs * per_epoch
        if step < warmup:
            return step / warmup
        steps = int(self.trainer.max_epochs or 1) * per_epoch
        return self._decay((step - warmup) / max(steps - warmup, 1))

    def _decay(self, share: float) -> float:
        """Learning rate after a share of the schedule, relative to the highest."""
        options = self.optimizer
        if options.schedule == "constant":
            return 1.0
        lowest = options.min_learning_rate / options.learning_rate
        return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))

    def _run(self, batch: Batch) -> tuple[VAEOutput, Images]:
        """The model's answer to a batch, and the images that it should have given."""
        given = batch.image if isinstance(batch, CachedItem) else batch
        images = given if given.is_floating_point() else unit_images(given)
        images = images.contiguous(memory_format=self.execution.torch_memory_format)
        with self.execution.autocast(images.device):
            if isinstance(batch, CachedItem):
                features = batch.features.to(images.dtype)
                return self._forward["features"](features, generator=self._generator), images
            return self._forward["images"](images, generator=self._generator), images

    def _objective_of(
        self,
        output: ModelOutput,
        images: Images,
        weights: Mapping[str, float] | None,
        last_layer: nn.Parameter | None = None,
    ) -> ObjectiveValue:
        value: ObjectiveValue = self.objective(output, images, weights, last_layer=last_layer)
        return value

    def _note(self, means: nn.ModuleDict, value: ObjectiveValue, count: int) -> None:
        entries = {"loss": value.total}
        entries |= {f"term/{name}": raw for name, raw in value.raw.items()}
        entries |= {f"weighted/{name}": weighted for name, weighted in value.weighted.items()}
        entries |= {f"ratio/{name}": ratio for name, ratio in value.ratios.items()}
        for name, mean in _entries(means):
            if name not in entries:
                continue
            term = entries[name].detach()
            weight = term.new_full((), count)  # a plain number would be copied to the device, and waited for
            mean.update(term, weight)


def _with_features(output: VAEOutput, batch: Batch) -> ModelOutput:
    """The output, with the images' features where they came from a cache."""
    return EncodedOutput(*output, batch.features) if isinstance(batch, CachedItem) else output


def _made_optimizer(term: Term) -> torch.optim.Optimizer:
    made = term.make_optimizer()
    if not isinstance(made, torch.optim.Optimizer) or isinstance(made, torch.optim.LBFGS):
        kind = type(made).__name__
        raise InvalidOptionError(
            f"make_optimizer of {type(term).__name__} must give an optimiser that steps without a closure, got {kind}."
        )
    return made


def _as_number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidOptionError(f"The metric {name!r} must compute one number, got {value!r}.") from error


def last_layer_of(decoder: nn.Module) -> nn.Parameter:
    """The last weight of a decoder: its attribute `last_layer`, or else its last parameter with several axes.

    Raises:
        InvalidOptionError: If it has none.
    """
    given = getattr(decoder, "last_layer", None)
    found = [given] if isinstance(given, nn.Parameter) else [each for each in decoder.parameters() if each.ndim > 1]
    if not found:
        raise InvalidOptionError(
            f"{type(decoder).__name__} has no weight at which gradients could be compared; give it an attribute"
            " last_layer, or the term adaptive=False."
        )
    return found[-1]


def _means_of(objective: Objective, more: Sequence[str] = ()) -> nn.ModuleDict:
    names = objective.term_names()
    keys = ["loss", *(f"term/{name}" for name in names), *(f"weighted/{name}" for name in names), *more]
    keys += [f"ratio/{name}" for name, entry in objective.items() if entry.term.is_adaptive]
    return nn.ModuleDict({key: MeanMetric(nan_strategy="disable") for key in keys})


def _entries(means: nn.ModuleDict) -> Iterator[tuple[str, MeanMetric]]:
    for name, mean in means.items():
        yield name, cast(MeanMetric, mean)


def _split(state: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return inner, {name: value for name, value in state.items() if not name.startswith(prefix)}
