"""Backbones: frozen pretrained networks that turn images into features."""

from transfervae.backbones.catalogue import (
    BackboneDescription,
    NodeDescription,
    backbone_names,
    describe_backbone,
    is_backbone,
    list_backbones,
)
from transfervae.backbones.create import create_backbone
from transfervae.backbones.frozen import FrozenBackbone
from transfervae.backbones.licenses import LicenseWarning, license_remark
from transfervae.backbones.reading import FUSIONS, Node

__all__ = [
    "FUSIONS",
    "BackboneDescription",
    "FrozenBackbone",
    "LicenseWarning",
    "Node",
    "NodeDescription",
    "backbone_names",
    "create_backbone",
    "describe_backbone",
    "is_backbone",
    "license_remark",
    "list_backbones",
]
