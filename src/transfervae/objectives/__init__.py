"""Objectives: what a training minimises, a sum of named, weighted terms."""

from transfervae.objectives.adversarial import GAN_LOSSES, Adversarial
from transfervae.objectives.discriminators import (
    DISCRIMINATORS,
    Discriminator,
    FeatureDiscriminator,
    Judgement,
    PatchDiscriminator,
)
from transfervae.objectives.kl import KL
from transfervae.objectives.latents import MMD, TotalCorrelation
from transfervae.objectives.objective import TERMS, AnyTerm, Objective, ObjectiveValue, term_options
from transfervae.objectives.perceptual import FeatureError, LearnedDistance, Perceptual
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
from transfervae.objectives.term import SCHEDULES, ModelOutput, Term, TermValue, WeightedTerm

__all__ = [
    "DISCRIMINATORS",
    "GAN_LOSSES",
    "KL",
    "L1",
    "MMD",
    "MSE",
    "RMSE",
    "SCHEDULES",
    "TERMS",
    "Adversarial",
    "AnyTerm",
    "Charbonnier",
    "Discriminator",
    "FeatureDiscriminator",
    "FeatureError",
    "FocalFrequency",
    "GaussianNLL",
    "Judgement",
    "LearnedDistance",
    "MSSSIMError",
    "ModelOutput",
    "Objective",
    "ObjectiveValue",
    "PatchDiscriminator",
    "Perceptual",
    "SSIMError",
    "Term",
    "TermValue",
    "TotalCorrelation",
    "WeightedTerm",
    "term_options",
]
