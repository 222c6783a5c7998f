"""Priors: what new latents are drawn from; a part of the model."""

from transfervae.options import PartTable
from transfervae.priors.normal import ScaledNormal, StandardNormal
from transfervae.priors.prior import Prior

__all__ = ["PRIORS", "Prior", "ScaledNormal", "StandardNormal"]

PRIORS = PartTable("prior", {"standard_normal": StandardNormal, "scaled_normal": ScaledNormal})
"""Priors by name; each takes the shape of a latent, and its options by keyword."""
