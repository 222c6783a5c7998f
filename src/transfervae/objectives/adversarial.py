"""The adversarial term: a discriminator, and what it and the decoder minimise against each other."""

import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.optim import AdamW, Optimizer

from transfervae.backbones import FrozenBackbone, Node
from transfervae.errors import InvalidOptionError, UnknownNameError
from transfervae.objectives._augment import augment
from transfervae.objectives.discriminators import DISCRIMINATORS, Discriminator, Judgement
from transfervae.objectives.term import ModelOutput, Term, first_step
from transfervae.options import Spec, records_options
from transfervae.ranks import average
from transfervae.shapes import Images, PerItem, Scalar, check_nonnegative, check_positive, check_share

LECAM_DECAY = 0.99
"""Of the running mean of logits that LeCAM pulls towards."""

LEVELS = 255
"""Steps of an 8-bit value."""


class GanLoss(NamedTuple):
    """What both sides minimise, as functions of logits, value by value.

    Attributes:
        of_real: The discriminator's, of photographs.
        of_made: The discriminator's, of reconstructions.
        of_generator: The decoder's.
    """

    of_real: Callable[[Tensor], Tensor]
    of_made: Callable[[Tensor], Tensor]
    of_generator: Callable[[Tensor], Tensor]


GAN_LOSSES: Mapping[str, GanLoss] = MappingProxyType(
    {
        "hinge": GanLoss(lambda x: (1 - x).relu(), lambda x: (1 + x).relu(), lambda x: -x),
        "non_saturating": GanLoss(lambda x: softplus(-x), softplus, lambda x: softplus(-x)),
        "least_squares": GanLoss(lambda x: (x - 1).square(), lambda x: x.square(), lambda x: (x - 1).square()),
    }
)
"""Adversarial losses by name: hinge (Lim & Ye 2017), non-saturating (Goodfellow et al. 2014), least squares (Mao et al.
2017)."""


@records_options
class Adversarial(Term):
    """How far reconstructions are from what a discriminator takes for photographs; it learns beside the model.

    The decoder minimises the mean over heads and positions of its loss; the discriminator half the sum of both of its
    losses, after every step of the model, on the same batch. With an adaptive weight (Esser et al. 2021) the term is
    also multiplied by |gradient of the other terms| / (|gradient of this term| + 1e-6), both at the decoder's last
    layer, and at most 1e4, so that `weight` is the ratio of this term's gradient to that of the others. Where the last
    layer is frozen, gradients are compared at the reconstruction.

    An untrained discriminator gives no useful gradient: let it start first, for example with `start_share` 0.5 and
    `discriminator_start_share` 0.4.
    """

    def __init__(
        self,
        *,
        discriminator: str = "features",
        network: str | None = None,
        nodes: Node | Sequence[Node] | None = None,
        weights: str | os.PathLike[str] | None = None,
        image_size: int | None = None,
        width: int | None = None,
        layers: int | None = None,
        loss: str = "hinge",
        adaptive: bool = True,
        augment: bool = True,
        rounded: bool = True,
        fresh: bool = False,
        r1: float = 0.0,
        lecam: float = 0.0,
        matching: float = 0.0,
        discriminator_start_epoch: int | None = None,
        discriminator_start_step: int | None = None,
        discriminator_start_share: float | None = None,
        learning_rate: float = 2e-4,
        betas: Sequence[float] = (0.5, 0.9),
    ) -> None:
        """Make a discriminator.

        Args:
            discriminator: features (heads on a frozen network) or patch (PatchGAN).
            network: Of features: name of a backbone, as `create_backbone` takes it; the encoder's if None.
            nodes: Of features: where the network is read, one or several; four of them if None.
            weights: Of features: of a named network: default, a file, or none.
            image_size: Of features: side to which images are resized for the network; as they are if None.
            width: Of patch: channels of the first layer, 64 if None.
            layers: Of patch: how often the grid is halved, 3 if None.
            loss: hinge, non_saturating or least_squares.
            adaptive: Multiply the weight by the ratio of gradients.
            augment: Show the discriminator images in changed colours and shifted (Zhao et al. 2020).
            rounded: Train the discriminator on reconstructions rounded to 8 bits, as photographs are.
            fresh: Train the discriminator on decoded modes, in evaluation mode, rather than on the model's own output.
            r1: Weight of the penalty on the gradient at photographs (Mescheder et al. 2018), r1/2 |gradient|^2.
            lecam: Weight of LeCAM (Tseng et al. 2021), which keeps logits near the running mean of the other side's.
            matching: Weight of feature matching (Salimans et al. 2016) in the decoder's loss: the absolute difference
                of the discriminator's features.
            discriminator_start_epoch: Epoch, counted from 0, from which on the discriminator learns.
            discriminator_start_step: Step, counted from 0, from which on it does.
            discriminator_start_share: Share of the run after which it does. The latest of the three counts; with none
                of them it learns as soon as the term counts.
            learning_rate: Of the discriminator, at its highest; it follows the run's schedule from its own start on.
            betas: Decay rates of the two moments of its AdamW.

        Raises:
            UnknownNameError: For another discriminator or loss.
            InvalidOptionError: For a number out of range, or an option of the other discriminator.
            TransferVAEError: If a named network cannot be created, as `create_backbone`.
        """
        super().__init__()
        if loss not in GAN_LOSSES:
            raise UnknownNameError("adversarial loss", loss, GAN_LOSSES)
        check_nonnegative(r1=r1, lecam=lecam, matching=matching)
        check_nonnegative(
            discriminator_start_epoch=discriminator_start_epoch or 0,
            discriminator_start_step=discriminator_start_step or 0,
        )
        check_share(discriminator_start_share=discriminator_start_share or 0)
        if not 0 < learning_rate < float("inf"):
            raise InvalidOptionError(f"learning_rate must be above 0 and finite, got {learning_rate}.")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise InvalidOptionError(f"betas must be two numbers in [0, 1), got {betas}.")
        for name, value in (("width", width), ("layers", layers), ("image_size", image_size)):
            check_positive(**{name: 1 if value is None else value})
        given = {
            "network": network,
            "nodes": nodes,
            "weights": weights,
            "image_size": image_size,
            "width": width,
            "layers": layers,
        }
        self.discriminator = _build(discriminator, given)
        self.is_adaptive = adaptive
        self.sees_modes = fresh
        self._loss = GAN_LOSSES[loss]
        self._augments, self._rounds = augment, rounded
        self._r1, self._lecam, self._matching = r1, lecam, matching
        self._starts = discriminator_start_epoch, discriminator_start_step, discriminator_start_share
        self._rate, self._betas = learning_rate, (betas[0], betas[1])
        self.register_buffer("running_logits", torch.zeros(2))

    follows_schedule = True

    def attach(self, backbone: FrozenBackbone) -> None:
        """Let the discriminator take the encoder's network, if it needs it."""
        self.discriminator.attach(backbone)

    def forward(self, output: ModelOutput, images: Images) -> PerItem:
        """One value per item: the decoder's loss."""
        judged = self._judge(output.reconstruction)
        value = _mean_of_heads(self._loss.of_generator, judged.logits)
        if self._matching:  # of both as they are: augmented, they would be shifted apart
            with torch.no_grad():
                wanted = self.discriminator(images).features
            made = self.discriminator(output.reconstruction).features if self._augments else judged.features
            pairs = zip(made, wanted, strict=True)
            errors = [(one - other).abs().flatten(1).mean(dim=1) for one, other in pairs]
            value = value + self._matching * torch.stack(errors).mean(dim=0)
        return value

    def own_loss(self, output: ModelOutput, images: Images) -> Scalar:
        """The discriminator's loss, with its penalties."""
        made = output.reconstruction
        if self._rounds:
            made = (made.clamp(0, 1) * LEVELS).round() / LEVELS
        real = images.detach().requires_grad_(bool(self._r1))
        of_real, of_made = self._judge(real), self._judge(made)
        losses = _mean_of_heads(self._loss.of_real, of_real.logits), _mean_of_heads(self._loss.of_made, of_made.logits)
        total = 0.5 * (losses[0].mean() + losses[1].mean())
        if self._r1:
            logits = torch.stack([head.sum() for head in of_real.logits]).sum()
            (slope,) = torch.autograd.grad(logits, real, create_graph=True)
            total = total + 0.5 * self._r1 * slope.square().flatten(1).sum(dim=1).mean()
        if self._lecam:
            total = total + self._lecam * self._lecam_penalty(of_real, of_made)
        return total

    def make_optimizer(self) -> Optimizer:
        """AdamW without decay, for the discriminator."""
        return AdamW(self.discriminator.parameters(), lr=self._rate, betas=self._betas, weight_decay=0.0)

    def own_start(self, steps_per_epoch: int, steps: int) -> int | None:
        """The step from which on the discriminator learns; None for the term's own start."""
        if self._starts == (None, None, None):
            return None
        epoch, step, share = self._starts
        return first_step(epoch or 0, step or 0, share or 0, steps_per_epoch=steps_per_epoch, steps=steps)

    def _judge(self, images: Images) -> Judgement:
        shown = augment(images) if self._augments and self.training else images
        judged: Judgement = self.discriminator(shown)
        return judged

    def _lecam_penalty(self, of_real: Judgement, of_made: Judgement) -> Scalar:
        """(real - running mean of made)^2 + (made - running mean of real)^2, both means over the past."""
        real, made = (_mean_of_heads(lambda x: x, judged.logits) for judged in (of_real, of_made))
        running = cast(Tensor, self.running_logits)
        penalty = (real - running[1]).square().mean() + (made - running[0]).square().mean()
        now = average(torch.stack([real.mean(), made.mean()]).detach())
        running.lerp_(now.to(running.dtype), 1 - LECAM_DECAY)
        return penalty


def _build(name: str, given: Mapping[str, Any]) -> Discriminator:
    options = {option: value for option, value in given.items() if value is not None}
    known = DISCRIMINATORS.options(name)
    foreign = [option for option in options if option not in known]
    if foreign:
        raise InvalidOptionError(
            f"The discriminator {name!r} has no option {foreign[0]!r}; its options: {', '.join(known)}."
        )
    built: Discriminator = DISCRIMINATORS.build(Spec(name, **options))
    return built


def _mean_of_heads(loss: Callable[[Tensor], Tensor], logits: Sequence[Tensor]) -> PerItem:
    """One value per item: the mean over positions, then over heads, in float32."""
    return torch.stack([loss(head.float()).flatten(1).mean(dim=1) for head in logits]).mean(dim=0)
