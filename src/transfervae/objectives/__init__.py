"""Objectives: what a training minimises, a sum of named, weighted terms."""

from transfervae.objectives.kl import KL
from transfervae.objectives.objective import TERMS, AnyTerm, Objective, ObjectiveValue, term_options
from transfervae.objectives.reconstruction import L1, MSE, RMSE, GaussianNLL
from transfervae.objectives.term import SCHEDULES, ModelOutput, Term, TermValue, WeightedTerm

__all__ = [
    "KL",
    "L1",
    "MSE",
    "RMSE",
    "SCHEDULES",
    "TERMS",
    "AnyTerm",
    "GaussianNLL",
    "ModelOutput",
    "Objective",
    "ObjectiveValue",
    "Term",
    "TermValue",
    "WeightedTerm",
    "term_options",
]
