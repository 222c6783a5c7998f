"""The objective: a sum of named, weighted terms."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from transfervae import losses
from transfervae.backbones import FrozenBackbone
from transfervae.errors import InvalidOptionError, UnknownOptionError
from transfervae.objectives.adversarial import Adversarial
from transfervae.objectives.kl import KL
from transfervae.objectives.latents import MMD, TotalCorrelation
from transfervae.objectives.perceptual import FeatureError, Perceptual
from transfervae.objectives.reconstruction import (
    L1,
    MSE,
    RMSE,
    Charbonnier,
    FocalFrequency,
    GaussianNLL,
    MSSSIMError,
    SSIMError,
)
from transfervae.objectives.term import ModelOutput, Term, WeightedTerm
from transfervae.options import Option, PartTable, Spec, options_of
from transfervae.ranks import average
from transfervae.shapes import Images, Scalar

TERMS = PartTable(
    "term",
    {
        "rmse": RMSE,
        "mse": MSE,
        "l1": L1,
        "charbonnier": Charbonnier,
        "gaussian_nll": GaussianNLL,
        "ssim": SSIMError,
        "ms_ssim": MSSSIMError,
        "focal_frequency": FocalFrequency,
        "features": FeatureError,
        "perceptual": Perceptual,
        "adversarial": Adversarial,
        "kl": KL,
        "total_correlation": TotalCorrelation,
        "mmd": MMD,
    },
)
"""Terms by name; each takes its options by keyword."""

AnyTerm: TypeAlias = str | Spec | Mapping[str, Any] | Term | WeightedTerm

OWN = "own:"

RATIO_EPSILON = 1e-6
LARGEST_RATIO = 1e4
"""Constants of adaptive weights (Esser et al. 2021)."""


class ObjectiveValue(NamedTuple):
    """An objective's value for a batch.

    Attributes:
        total: What is minimised: the sum of `weighted`.
        raw: Each term's own value by name, mean over the batch.
        weighted: Each term's summand by name.
        ratios: What the weights of adaptive terms were multiplied with, by name; 1 where nothing was measured.
    """

    total: Scalar
    raw: dict[str, Scalar]
    weighted: dict[str, Scalar]
    ratios: dict[str, Scalar]


class Objective(nn.Module):
    """A sum of named, weighted terms: `Objective("rmse", Spec("kl", weight=1e-4))`.

    Attributes:
        terms: `WeightedTerm` by name, in order.
    """

    def __init__(self, *terms: AnyTerm) -> None:
        """Add terms up.

        Args:
            terms: Names or specs from `TERMS`, whose options are the term's and those of `WeightedTerm`; or terms of
                your own, with `WeightedTerm(term, weight=...)` or without. A term of your own is named by its
                attribute `name`, or else by its class.

        Raises:
            UnknownNameError: For a name that is not in `TERMS`.
            UnknownOptionError: For an option that the term does not have.
            InvalidOptionError: If there is no term, one twice, or a weight that only you can know is missing.
        """
        super().__init__()
        made = [_make_term(term) for term in terms]
        names = [name for name, _ in made]
        if not names or len(set(names)) < len(names):
            raise InvalidOptionError(f"An objective needs at least one term, and each name once, got {names}.")
        for name in names:
            if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
                raise InvalidOptionError(f"A term cannot be named {name!r}: letters, digits and _, such as 'edges'.")
        self.terms = nn.ModuleDict(dict(made))
        self.final_weights()  # refuse what has no default

    @staticmethod
    def parse(value: Any) -> "Objective":
        """Read an objective: names with commas between them, a list of terms, or options by term's name.

        Raises:
            TransferVAEError: As the constructor.
        """
        if isinstance(value, Objective):
            return value
        if isinstance(value, str):
            return Objective(*(part.strip() for part in value.split(",")))
        if isinstance(value, Mapping):
            return Objective(*(Spec(name, **dict(options or {})) for name, options in value.items()))
        if isinstance(value, list | tuple):
            return Objective(*value)
        return Objective(value)

    def forward(
        self,
        output: ModelOutput,
        images: Images,
        weights: Mapping[str, float] | None = None,
        *,
        last_layer: Tensor | None = None,
    ) -> ObjectiveValue:
        """The objective's value for a batch.

        Args:
            output: What the model gave.
            images: The images that it should have given, `[b, 3, h, w]` in [0, 1].
            weights: Of the terms, by name, as `weights_at` gives them; the final ones if None.
            last_layer: The decoder's last weight, at which the gradients of adaptive terms are compared (at the
                reconstruction where it is frozen); their weights are taken as they are if None.
        """
        weights = self.final_weights(output.latent[0].numel()) if weights is None else weights
        total: Tensor | None = None
        raw: dict[str, Scalar] = {}
        weighted: dict[str, Scalar] = {}
        ratios: dict[str, Scalar] = {}
        for name, entry in sorted(self.items(), key=lambda item: item[1].term.is_adaptive):  # these come last
            counts = bool(weights[name])
            waits = entry.term.has_optimizer or entry.starts_later
            if self.training and waits and not counts:  # it would cost time for nothing
                raw[name] = minimised = output.reconstruction.new_zeros(())
            else:
                raw[name], minimised = entry.term.evaluate(output, images)
            if entry.term.is_adaptive:
                ratios[name] = torch.ones_like(minimised).detach()
            if not counts:  # a term that does not count cannot spoil the others, whatever its value
                weighted[name] = torch.zeros_like(minimised)
                continue
            if entry.term.is_adaptive and last_layer is not None and total is not None and minimised.requires_grad:
                minimised, ratios[name] = _balance(minimised, total, output.reconstruction, last_layer)
            weighted[name] = minimised if weights[name] == 1 else weights[name] * minimised
            total = weighted[name] if total is None else total + weighted[name]
        if total is None:  # nothing counts yet
            total = 0.0 * output.reconstruction.sum()
        return ObjectiveValue(total, raw, weighted, ratios)

    def attach(self, backbone: FrozenBackbone) -> None:
        """Tell every term the encoder's network, before a training begins."""
        for _name, entry in self.items():  # noqa: PERF102 - this is no mapping
            entry.term.attach(backbone)

    def term_names(self) -> list[str]:
        """The terms' names, in order."""
        return list(self.terms)

    def items(self) -> Iterator[tuple[str, WeightedTerm]]:
        """The terms with their names, in order."""
        for name, entry in self.terms.items():
            if isinstance(entry, WeightedTerm):
                yield name, entry

    def weights_at(
        self, step: int, steps_per_epoch: int, latent_size: int = losses.REFERENCE_LATENT, *, steps: int = 0
    ) -> dict[str, float]:
        """The terms' weights at a training step, counted from 0, for latents of some size.

        Args:
            step: Counted from 0.
            steps_per_epoch: Steps of an epoch.
            latent_size: Numbers in one latent.
            steps: Steps of the whole run, for terms that start after a share of it.
        """
        final = self.final_weights(latent_size)
        return {name: entry.weight_at(step, steps_per_epoch, final[name], steps) for name, entry in self.items()}

    def final_weights(self, latent_size: int = losses.REFERENCE_LATENT) -> dict[str, float]:
        """The terms' weights once all schedules are over, for latents of some size (numbers in one latent)."""
        weights = {}
        for name, entry in self.items():
            if entry.weight is None:
                others = [other.term for other_name, other in self.items() if other_name != name]
                weights[name] = entry.term.default_weight(others, latent_size)
            else:
                weights[name] = entry.weight
        return weights

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of terms without an optimiser of their own: the model's optimiser takes them."""
        for _name, entry in self.items():  # noqa: PERF102 - this is no mapping
            if not entry.term.has_optimizer:
                yield from (parameter for parameter in entry.term.parameters() if parameter.requires_grad)

    def terms_with_optimizer(self) -> dict[str, Term]:
        """Terms that are trained by an optimiser of their own, by name."""
        return {name: entry.term for name, entry in self.items() if entry.term.has_optimizer}

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Options by term's name: plain values, which `parse` reads again; a term of one's own by class and weights."""
        described = {}
        for name, entry in self.items():
            spec = TERMS.spec_of(entry.term)
            own = {} if spec is None else spec.to_dict()
            own.pop("name", None)
            described[name if spec else f"{OWN}{name}"] = {
                **{option: getattr(entry, option) for option in WEIGHTING},
                **own,
            }
        return described


WEIGHTING: Mapping[str, Option] = options_of(WeightedTerm)
"""Options that every term has."""


def term_options(name: str) -> dict[str, Option]:
    """All options of a term by its name: those of its weight, and its own.

    Raises:
        UnknownNameError: If there is no such term.
    """
    return {**WEIGHTING, **TERMS.options(name)}


def _balance(value: Scalar, others: Scalar, reconstruction: Images, last_layer: Tensor) -> tuple[Scalar, Scalar]:
    """A term times the ratio of the other terms' gradient at the decoder's last layer to its own, and that ratio.

    Of several processes the gradients are averaged first, so that all have the ratio that one would have. The
    term's network is passed backwards once only: its gradient at the reconstruction stands for it in the result. Where
    the layer is frozen, the gradients are compared at the reconstruction.
    """
    (of_others,) = torch.autograd.grad(others, reconstruction, retain_graph=True)
    (of_term,) = torch.autograd.grad(value, reconstruction)
    sizes = []
    for slope in (of_others, of_term):
        if not last_layer.requires_grad:
            sizes.append(average(slope.square().sum()).sqrt())
            continue
        (gradient,) = torch.autograd.grad(reconstruction, last_layer, slope, retain_graph=True)
        sizes.append(average(gradient).norm())
    ratio = (sizes[0] / (sizes[1] + RATIO_EPSILON)).clamp(0, LARGEST_RATIO)
    linear = (reconstruction * of_term).sum()
    return ratio * (value.detach() + linear - linear.detach()), ratio


def _make_term(given: AnyTerm) -> tuple[str, WeightedTerm]:
    if isinstance(given, Term):
        given = WeightedTerm(given)
    if isinstance(given, WeightedTerm):
        return str(getattr(given.term, "name", type(given.term).__name__)), given
    spec = Spec.parse(given, "term")
    known = term_options(spec.name)
    unknown = [option for option in spec.options if option not in known]
    if unknown:
        raise UnknownOptionError(f"term {spec.name!r}", unknown[0], known)
    weighting = {option: value for option, value in spec.options.items() if option in WEIGHTING}
    own = {option: value for option, value in spec.options.items() if option not in WEIGHTING}
    return spec.name, WeightedTerm(TERMS.build(Spec(spec.name, **own)), **weighting)
