"""Metrics: figures on held-out images, from torchmetrics."""

from transfervae.metrics.evaluate import DEFAULT_METRICS, METRICS, AnyMetric, evaluate, make_metrics, mean_image_rmse
from transfervae.metrics.latents import ActiveUnits, MeanKL
from transfervae.metrics.reconstruction import PSNR, RMSE, SSIM

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "PSNR",
    "RMSE",
    "SSIM",
    "ActiveUnits",
    "AnyMetric",
    "MeanKL",
    "evaluate",
    "make_metrics",
    "mean_image_rmse",
]
