"""Posteriors: what every head returns, and all mathematics on it in closed form."""

from transfervae.posteriors.gaussian import DiagonalGaussian
from transfervae.posteriors.noise import NOISE_LAWS
from transfervae.posteriors.point import PointPosterior
from transfervae.posteriors.posterior import Posterior

__all__ = ["NOISE_LAWS", "DiagonalGaussian", "PointPosterior", "Posterior"]
