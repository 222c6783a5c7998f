import subprocess
import sys
from types import ModuleType

import pytest

import transfervae as tv

EXPORTS = {
    "DECODERS",
    "HEADS",
    "METRICS",
    "PRIORS",
    "TERMS",
    "DeterministicHead",
    "DiagonalGaussian",
    "FeatureCache",
    "FrozenBackbone",
    "GaussianHead",
    "ImageFolder",
    "LatentScaling",
    "LatentStatistics",
    "Objective",
    "PointPosterior",
    "PooledGaussianHead",
    "Posterior",
    "ScaledNormal",
    "SpatialGaussianHead",
    "Spec",
    "StandardNormal",
    "Term",
    "ToyFaces",
    "TrainResult",
    "TransferVAE",
    "VAEOutput",
    "WeightedTerm",
    "build_vae",
    "compare",
    "create_backbone",
    "data",
    "describe_backbone",
    "errors",
    "evaluate",
    "evaluation",
    "inference",
    "interop",
    "kl_decoder",
    "list_backbones",
    "losses",
    "metrics",
    "objectives",
    "pictures",
    "pixelshuffle_decoder",
    "priors",
    "residual_decoder",
    "resize_decoder",
    "schedules",
    "train",
    "training",
    "transpose_decoder",
    "vit_decoder",
}
HEAVY = ("timm", "torchvision", "pytorch_lightning", "matplotlib", "torchmetrics", "typer", "rich")


def test_exports_are_exactly_these() -> None:
    assert set(tv.__all__) == EXPORTS
    assert all(hasattr(tv, name) for name in EXPORTS)
    hidden = {"Any", "TYPE_CHECKING", "import_module"}
    named = {name for name, value in vars(tv).items() if not name.startswith("_") and not isinstance(value, ModuleType)}
    assert named - hidden <= EXPORTS


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'trian'"):
        tv.trian  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = f"import sys, transfervae; print([name for name in {HEAVY!r} if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_all_errors_derive_from_one_and_from_the_builtin_that_fits() -> None:
    classes = [value for value in vars(tv.errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert all(issubclass(value, tv.errors.TransferVAEError) for value in classes)
    builtin = (ValueError, OSError, ImportError, ArithmeticError)
    assert all(issubclass(value, builtin) for value in classes if value is not tv.errors.TransferVAEError)
