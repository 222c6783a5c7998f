"""The objective: a sum of named, weighted terms."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from transfervae import losses
from transfervae.backbones import FrozenBackbone
from transfervae.errors import InvalidOptionError, UnknownOptionError
from transfervae.objectives.kl import KL
from transfervae.objectives.latents import MMD, TotalCorrelation
from transfervae.objectives.perceptual import FeatureError, Perceptual
from transfervae.objectives.reconstruction import L1, MSE, RMSE, Charbonnier, FocalFrequency, GaussianNLL, SSIMError
from transfervae.objectives.term import ModelOutput, Term, WeightedTerm
from transfervae.options import Option, PartTable, Spec, options_of
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
        "focal_frequency": FocalFrequency,
        "features": FeatureError,
        "perceptual": Perceptual,
        "kl": KL,
        "total_correlation": TotalCorrelation,
        "mmd": MMD,
    },
)
"""Terms by name; each takes its options by keyword."""

AnyTerm: TypeAlias = str | Spec | Mapping[str, Any] | Term | WeightedTerm

OWN = "own:"


class ObjectiveValue(NamedTuple):
    """An objective's value for a batch.

    Attributes:
        total: What is minimised: the sum of `weighted`.
        raw: Each term's own value by name, mean over the batch.
        weighted: Each term's summand by name.
    """

    total: Scalar
    raw: dict[str, Scalar]
    weighted: dict[str, Scalar]


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
        self, output: ModelOutput, images: Images, weights: Mapping[str, float] | None = None
    ) -> ObjectiveValue:
        """The objective's value for a batch.

        Args:
            output: What the model gave.
            images: The images that it should have given, `[b, 3, h, w]` in [0, 1].
            weights: Of the terms, by name, as `weights_at` gives them; the final ones if None.
        """
        weights = self.final_weights(output.latent[0].numel()) if weights is None else weights
        total: Tensor | None = None
        raw: dict[str, Scalar] = {}
        weighted: dict[str, Scalar] = {}
        for name, entry in self.items():
            value = entry.term.evaluate(output, images)
            raw[name] = value.raw
            if not weights[name]:  # a term that does not count cannot spoil the others, whatever its value
                weighted[name] = torch.zeros_like(value.minimised)
                continue
            weighted[name] = value.minimised if weights[name] == 1 else weights[name] * value.minimised
            total = weighted[name] if total is None else total + weighted[name]
        if total is None:  # nothing counts yet
            total = 0.0 * output.reconstruction.sum()
        return ObjectiveValue(total, raw, weighted)

    def attach(self, backbone: FrozenBackbone) -> None:
        """Tell every term the encoder's network, before a training begins."""
        for _name, entry in self.items():  # noqa: PERF102 - this is no mapping
            entry.term.attach(backbone)

    def items(self) -> Iterator[tuple[str, WeightedTerm]]:
        """The terms with their names, in order."""
        for name, entry in self.terms.items():
            if isinstance(entry, WeightedTerm):
                yield name, entry

    def weights_at(
        self, step: int, steps_per_epoch: int, latent_size: int = losses.REFERENCE_LATENT
    ) -> dict[str, float]:
        """The terms' weights at a training step, counted from 0, for latents of some size."""
        final = self.final_weights(latent_size)
        return {name: entry.weight_at(step, steps_per_epoch, final[name]) for name, entry in self.items()}

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
