"""Plain sentences on what is wrong with a model, each with what to change."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

COLORFUL = 0.01
"""Error of colour of the mean image from which on images count as coloured; gray ones have 0."""

STILL_IMPROVING = 0.01
"""Share by which the last epoch must be better than the one before to count as improving."""

OVERFITTING = 0.02
"""Share by which the last epoch must be worse than the best to count as overfitting."""

FEW_EPOCHS = 3


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The figures that verdicts are based on.

    Attributes:
        figures: `rmse`, and where known `chroma` and `active_units`.
        baseline: `rmse` and `chroma` of the mean image.
        latent_size: Numbers in a latent.
        is_gaussian: Whether the head gives distributions; a deterministic one has no noise.
        has_pretrained_backbone: Whether the backbone's weights are pretrained ones.
        rows: Figures by epoch, of a run; empty if not known.
        monitor: The figure of `rows` that is minimised on held-out images.
    """

    figures: Mapping[str, float]
    baseline: Mapping[str, float]
    latent_size: int
    is_gaussian: bool = True
    has_pretrained_backbone: bool = True
    rows: Sequence[Mapping[str, float]] = field(default_factory=list)
    monitor: str = "val/loss"


def judge(evidence: Evidence) -> list[str]:
    """Sentences that name each problem found and its remedy; an empty list if none was found."""
    found = (judgement(evidence) for judgement in _JUDGEMENTS)
    return [sentence for sentence in found if sentence]


def _worse_than_the_mean_image(evidence: Evidence) -> str | None:
    own, mean = evidence.figures["rmse"], evidence.baseline["rmse"]
    if own <= mean:
        return None
    if not evidence.has_pretrained_backbone:
        cause = "the backbone's weights are random: give it pretrained ones"
    elif 0 < len(evidence.rows) < FEW_EPOCHS:
        count = len(evidence.rows)
        cause = f"{count} epoch{'s are' if count > 1 else ' is'} few: train longer"
    else:
        cause = "lower the weight of the KL (--objective.kl.weight), or the learning rate"
    return f"Worse than the mean image: RMSE {own:.4f}, and {mean:.4f} for the mean image. Likely cause: {cause}."


def _mostly_noise(evidence: Evidence) -> str | None:
    active = evidence.figures.get("active_units")
    if active is None or not evidence.is_gaussian or active >= evidence.latent_size / 2:
        return None
    return (
        f"Most of the latent is noise: {active:.0f} of {evidence.latent_size} numbers tell 0.1 nats or more of the"
        " image. Lower the weight of the KL (--objective.kl.weight), or take fewer latent numbers (--head.latent-dim)."
    )


def _monitored(evidence: Evidence) -> list[float]:
    """The monitored figure by epoch; nothing if an epoch lacks it."""
    values = [row.get(evidence.monitor, math.nan) for row in evidence.rows]
    return values if all(map(math.isfinite, values)) else []


def _still_improving(evidence: Evidence) -> str | None:
    values = _monitored(evidence)
    if len(values) < 2 or values[-1] > min(values) or values[-2] - values[-1] < STILL_IMPROVING * abs(values[-2]):
        return None
    return f"Still improving at the last epoch: train longer (--resume --epochs {2 * len(values)})."


def _overfitting(evidence: Evidence) -> str | None:
    values = _monitored(evidence)
    training = [row.get(evidence.monitor.replace("val/", "train/"), float("nan")) for row in evidence.rows]
    if not values:
        return None
    best = min(range(len(values)), key=values.__getitem__)
    has_risen = values[-1] > values[best] + OVERFITTING * abs(values[best])
    if not has_risen or not training[-1] < training[best]:
        return None
    return (
        f"Overfitting: held-out images have become worse since epoch {best + 1}, while training ones still improve. The"
        " model of that epoch was kept; more images, --dataset.flips or --patience help."
    )


def _colors_lost(evidence: Evidence) -> str | None:
    own, mean = evidence.figures.get("chroma"), evidence.baseline.get("chroma", 0.0)
    if own is None or mean < COLORFUL or own <= mean:
        return None
    return (
        f"Colours are lost: their error is {own:.4f}, and {mean:.4f} for the mean image. Read an earlier node"
        " (--backbone.node), or several."
    )


_JUDGEMENTS = (_worse_than_the_mean_image, _mostly_noise, _still_improving, _overfitting, _colors_lost)
