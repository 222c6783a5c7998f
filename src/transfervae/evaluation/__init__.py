"""Evaluation: reports on a model over images, with the protocol that each figure was measured by."""

from transfervae.evaluation.disentanglement import DisentanglementFigures, disentanglement
from transfervae.evaluation.evaluate import REPORTED, evaluate
from transfervae.evaluation.latents import LatentFigures, measure_latents, mutual_information
from transfervae.evaluation.likelihood import negative_log_likelihood
from transfervae.evaluation.probes import ProbeFigures, nearest_images, outliers, probe
from transfervae.evaluation.report import ImageFigures, PartFigures, Report, compare_reports
from transfervae.evaluation.sheet import write_report
from transfervae.evaluation.verdicts import Evidence, judge

__all__ = [
    "REPORTED",
    "DisentanglementFigures",
    "Evidence",
    "ImageFigures",
    "LatentFigures",
    "PartFigures",
    "ProbeFigures",
    "Report",
    "compare_reports",
    "disentanglement",
    "evaluate",
    "judge",
    "measure_latents",
    "mutual_information",
    "nearest_images",
    "negative_log_likelihood",
    "outliers",
    "probe",
    "write_report",
]
