"""Evaluation: reports on a model over images, with the protocol that each figure was measured by."""

from transfervae.evaluation.evaluate import REPORTED, evaluate
from transfervae.evaluation.report import ImageFigures, PartFigures, Report, compare_reports
from transfervae.evaluation.sheet import write_report
from transfervae.evaluation.verdicts import Evidence, judge

__all__ = [
    "REPORTED",
    "Evidence",
    "ImageFigures",
    "PartFigures",
    "Report",
    "compare_reports",
    "evaluate",
    "judge",
    "write_report",
]
