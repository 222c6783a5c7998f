import subprocess
import sys
from types import ModuleType

import transfervae as tv

EXPORTS = {
    "DeterministicHead",
    "DiagonalGaussian",
    "FeatureCache",
    "FrozenBackbone",
    "GaussianHead",
    "LatentScaling",
    "LatentStatistics",
    "PointPosterior",
    "PooledGaussianHead",
    "Posterior",
    "SpatialGaussianHead",
    "TransferVAE",
    "VAEOutput",
    "build_vae",
    "create_backbone",
    "data",
    "errors",
    "losses",
    "pixelshuffle_decoder",
    "resize_decoder",
    "schedules",
    "transpose_decoder",
}
HEAVY = ("timm", "torchvision", "pytorch_lightning", "matplotlib", "torchmetrics", "typer", "rich")


def test_exports_are_exactly_these() -> None:
    assert set(tv.__all__) == EXPORTS
    named = {name for name, value in vars(tv).items() if not name.startswith("_") and not isinstance(value, ModuleType)}
    assert named == {name for name in EXPORTS if not isinstance(getattr(tv, name), ModuleType)}


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = f"import sys, transfervae; print([name for name in {HEAVY!r} if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_all_errors_derive_from_one_and_from_the_builtin_that_fits() -> None:
    classes = [value for value in vars(tv.errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert all(issubclass(value, tv.errors.TransferVAEError) for value in classes)
    builtin = (ValueError, OSError, ImportError, ArithmeticError)
    assert all(issubclass(value, builtin) for value in classes if value is not tv.errors.TransferVAEError)
