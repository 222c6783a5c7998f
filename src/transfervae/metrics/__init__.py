"""Metrics: figures on held-out images, from torchmetrics."""

from transfervae.metrics.color import ChromaError, chroma_error
from transfervae.metrics.compute import (
    DEFAULT_METRICS,
    METRICS,
    AnyMetric,
    Baseline,
    baseline_of,
    compute_metrics,
    make_metrics,
    mean_image,
)
from transfervae.metrics.features import FeatureDistance, KernelDistance
from transfervae.metrics.latents import ActiveUnits, Information, LatentMoments, MeanKL, Rate
from transfervae.metrics.mean import MeanOverImages
from transfervae.metrics.reconstruction import L1, PSNR, RMSE, SSIM

__all__ = [
    "DEFAULT_METRICS",
    "L1",
    "METRICS",
    "PSNR",
    "RMSE",
    "SSIM",
    "ActiveUnits",
    "AnyMetric",
    "Baseline",
    "ChromaError",
    "FeatureDistance",
    "Information",
    "KernelDistance",
    "LatentMoments",
    "MeanKL",
    "MeanOverImages",
    "Rate",
    "baseline_of",
    "chroma_error",
    "compute_metrics",
    "make_metrics",
    "mean_image",
]
