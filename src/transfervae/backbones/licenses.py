"""What the licence of published weights allows, as far as its name tells."""

import warnings
from collections.abc import Mapping
from types import MappingProxyType

PERMISSIVE = frozenset({"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"})
"""Licences that ask for little more than attribution."""

REMARKS: Mapping[str, str] = MappingProxyType(
    {
        "cc-by-nc-4.0": "non-commercial",
        "fair-noncommercial-research-license": "non-commercial",
        "apple-amlr": "non-commercial",
        "seer-license": "non-commercial",
        "unknown": "unknown",
    }
)


class LicenseWarning(UserWarning):
    """Weights have a licence that forbids commercial use, or one that is not known or has terms of its own."""


def license_remark(license_name: str | None) -> str:
    """One or two words on a licence: "" if permissive, "non-commercial", "unknown", or "own terms".

    Args:
        license_name: As the publisher names it; None for weights of one's own.
    """
    if license_name is None or license_name in PERMISSIVE:
        return ""
    return REMARKS.get(license_name, "own terms")


def warn_of_license(owner: str, license_name: str | None) -> None:
    """Warn once of weights whose licence is not permissive."""
    remark = license_remark(license_name)
    if remark:
        what = "is unknown" if remark == "unknown" else f"is {license_name} ({remark})"
        warnings.warn(f"The licence of {owner}'s weights {what}; read it first.", LicenseWarning, stacklevel=5)
