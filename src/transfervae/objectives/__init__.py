"""Objectives: what a training minimises, a sum of named, weighted terms."""

from transfervae.objectives.kl import KL
from transfervae.objectives.latents import MMD, TotalCorrelation
from transfervae.objectives.objective import TERMS, AnyTerm, Objective, ObjectiveValue, term_options
from transfervae.objectives.perceptual import FeatureError, LearnedDistance, Perceptual
from transfervae.objectives.reconstruction import L1, MSE, RMSE, Charbonnier, FocalFrequency, GaussianNLL, SSIMError
from transfervae.objectives.term import SCHEDULES, ModelOutput, Term, TermValue, WeightedTerm

__all__ = [
    "KL",
    "L1",
    "MMD",
    "MSE",
    "RMSE",
    "SCHEDULES",
    "TERMS",
    "AnyTerm",
    "Charbonnier",
    "FeatureError",
    "FocalFrequency",
    "GaussianNLL",
    "LearnedDistance",
    "ModelOutput",
    "Objective",
    "ObjectiveValue",
    "Perceptual",
    "SSIMError",
    "Term",
    "TermValue",
    "TotalCorrelation",
    "WeightedTerm",
    "term_options",
]
