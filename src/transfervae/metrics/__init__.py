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
from transfervae.metrics.extractors import Extractor, InceptionFeatures, PooledFeatures
from transfervae.metrics.features import FID, KID, FeatureDistance, KernelDistance
from transfervae.metrics.latents import ActiveUnits, Information, LatentMoments, MeanKL, Rate
from transfervae.metrics.mean import MeanOverImages
from transfervae.metrics.perceptual import LPIPS
from transfervae.metrics.reconstruction import L1, MSSSIM, PSNR, RMSE, SSIM

__all__ = [
    "DEFAULT_METRICS",
    "FID",
    "KID",
    "L1",
    "LPIPS",
    "METRICS",
    "MSSSIM",
    "PSNR",
    "RMSE",
    "SSIM",
    "ActiveUnits",
    "AnyMetric",
    "Baseline",
    "ChromaError",
    "Extractor",
    "FeatureDistance",
    "InceptionFeatures",
    "Information",
    "KernelDistance",
    "LatentMoments",
    "MeanKL",
    "MeanOverImages",
    "PooledFeatures",
    "Rate",
    "baseline_of",
    "chroma_error",
    "compute_metrics",
    "make_metrics",
    "mean_image",
]
