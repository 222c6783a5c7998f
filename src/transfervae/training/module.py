"""The training step, for PyTorch Lightning."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from typing_extensions import override

from transfervae.cache import CachedItem
from transfervae.errors import DivergedError
from transfervae.evaluation import HeldOutMetrics
from transfervae.execution import Execution
from transfervae.losses import ElboTerms, elbo
from transfervae.model import TransferVAE, VAEOutput
from transfervae.schedules import Schedule
from transfervae.shapes import Images, unit_images
from transfervae.training.options import TrainOptions

SEED_STRIDE = 1_000_003


FUSED = ("cpu", "cuda")
"""Where Adam can change all parameters in one pass over memory."""

Batch = Tensor | CachedItem
"""Images, 8 bits or floating point in [0, 1], or images in 8 bits with the backbone's features of them."""


class VAEModule(pl.LightningModule):
    """Trains head and decoder of a model on images, or on images with their cached features.

    Every epoch draws its noise from (seed, epoch, process), so that a run that resumes at an epoch's start goes on as
    if it had never stopped. Checkpoints hold no weights of the backbone.

    Attributes:
        vae: The model.
        options: What is learned.
        execution: Precision and memory layout.
        beta: Weight of the KL at the last step.
    """

    def __init__(
        self,
        vae: TransferVAE,
        options: TrainOptions,
        *,
        execution: Execution | None = None,
        compiled: bool = False,
    ) -> None:
        """Wrap a model.

        Args:
            vae: The model; its head and decoder are trained in place.
            options: What is learned.
            execution: Precision and memory layout; as the trainer and the model have them if None.
            compiled: Run the model through `torch.compile`. Noise then comes from torch's global random state, which
                is seeded at each epoch's start.
        """
        super().__init__()
        self.vae = vae if execution is None else vae.to(memory_format=execution.memory_format)
        self.options = options
        self.execution = execution or Execution()
        self._compiled = compiled
        self._forward: dict[str, Callable[..., VAEOutput]] = {
            "images": torch.compile(vae.forward) if compiled else vae.forward,
            "features": torch.compile(vae.forward_from_features) if compiled else vae.forward_from_features,
        }
        self.beta = options.target_beta
        self.terms = torch.nn.ModuleDict({name: MeanMetric(nan_strategy="disable") for name in ElboTerms._fields})
        self.held_out_terms = torch.nn.ModuleDict(
            {name: MeanMetric(nan_strategy="disable") for name in ElboTerms._fields}
        )
        self.held_out = HeldOutMetrics(math.prod(vae.latent_shape))
        self._generator: torch.Generator | None = None
        self._schedule: Schedule = options.schedule(1)

    @override
    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One step: forward, objective, and its terms noted without waiting for the device."""
        self.beta = self._schedule(self.global_step)
        output, images = self._run(batch)
        terms = self._objective(output, images, self.beta)
        self._note(self.terms, terms, len(images))
        return terms.total

    @override
    def validation_step(self, batch: Batch, index: int) -> None:
        """Note the objective, at its final beta, and the figures of one held-out batch."""
        output, images = self._run(batch)
        self._note(self.held_out_terms, self._objective(output, images, self.options.target_beta), len(images))
        self.held_out.update(output, images)

    @override
    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam (Kingma & Ba 2015) on head and decoder, its rate falling to 0 along a half cosine over all steps."""
        fused = self.device.type in FUSED
        optimizer = torch.optim.Adam(self.vae.trainable_parameters(), lr=self.options.learning_rate, fused=fused)
        scheduler = LambdaLR(optimizer, lambda step: self._rate(step))  # noqa: PLW0108 - a method would be saved
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @override
    def on_train_epoch_start(self) -> None:
        """Start the epoch's own noise."""
        self._schedule = self.options.schedule(int(self.trainer.num_training_batches))
        seed = (self.options.seed * SEED_STRIDE + self.current_epoch) * SEED_STRIDE + self.global_rank
        if self._compiled:
            torch.manual_seed(seed % 2**63)
        else:
            self._generator = torch.Generator(self.device).manual_seed(seed % 2**63)

    def running_terms(self) -> dict[str, float]:
        """This process's mean of each term since the epoch began; waits for the device."""
        sums = {name: metric for name, metric in _metrics(self.terms) if name != "total"}
        return {name: (metric.mean_value / metric.weight).item() for name, metric in sums.items()}

    def epoch_figures(self) -> dict[str, float]:
        """The figures of the epoch that just ended, the same on every process; must be called on all of them.

        Raises:
            DivergedError: If a figure is not finite.
        """
        figures = {f"train/{name}": metric.compute().item() for name, metric in _metrics(self.terms)}
        figures |= {f"val/{name}": metric.compute().item() for name, metric in _metrics(self.held_out_terms)}
        figures |= {f"val/{name}": value.item() for name, value in self.held_out.compute().items()}
        for metric in (*self.terms.values(), *self.held_out_terms.values(), self.held_out):
            metric.reset()  # type: ignore[operator]
        wrong = [name for name, value in figures.items() if not math.isfinite(value)]
        if wrong:
            raise DivergedError(
                f"The run diverged: {wrong[0]} is {figures[wrong[0]]} in epoch {self.current_epoch + 1}; try a smaller"
                " learning rate, or a higher precision."
            )
        return figures

    @override
    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        """Head and decoder only."""
        return dict(self.vae.trainable_state())

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gave, all or nothing."""
        self.vae.load_trainable_state(state_dict)

    def _rate(self, step: int) -> float:
        """Learning rate at a step, relative to the first; the number of batches is known only once training begins."""
        if step == 0:
            return 1.0
        steps = self.options.epochs * int(self.trainer.num_training_batches)
        return 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))

    def _run(self, batch: Batch) -> tuple[VAEOutput, Images]:
        """The model's answer to a batch, and the images that it should have given."""
        given = batch.image if isinstance(batch, CachedItem) else batch
        images = given if given.is_floating_point() else unit_images(given)
        images = images.contiguous(memory_format=self.execution.memory_format)
        with self.execution.autocast(images.device):
            if isinstance(batch, CachedItem):
                features = batch.features.to(images.dtype)
                return self._forward["features"](features, generator=self._generator), images
            return self._forward["images"](images, generator=self._generator), images

    def _objective(self, output: VAEOutput, images: Images, beta: float) -> ElboTerms:
        options = self.options
        return elbo(output, images, reconstruction=options.reconstruction, beta=beta, free_bits=options.free_bits)

    def _note(self, metrics: torch.nn.ModuleDict, terms: ElboTerms, count: int) -> None:
        for name, metric in _metrics(metrics):
            term = getattr(terms, name).detach()
            weight = term.new_full((), count)  # a plain number would be copied to the device, and waited for
            metric.update(term, weight)


def _metrics(metrics: torch.nn.ModuleDict) -> list[tuple[str, MeanMetric]]:
    return [(name, metric) for name, metric in metrics.items() if isinstance(metric, MeanMetric)]
