"""Backbones: frozen pretrained networks that turn images into features."""

from transfervae.backbones.catalogue import backbone_names, describe_backbone, is_backbone, list_backbones
from transfervae.backbones.choose import broad_nodes, fine_nodes, spread_nodes
from transfervae.backbones.create import create_backbone
from transfervae.backbones.descriptions import BackboneDescription, NodeDescription
from transfervae.backbones.families import FAMILY_NAMES, resolve_backbone_name
from transfervae.backbones.feature_spec import FUSIONS, Node
from transfervae.backbones.frozen import FrozenBackbone
from transfervae.backbones.licenses import LicenseWarning, license_remark

__all__ = [
    "FAMILY_NAMES",
    "FUSIONS",
    "BackboneDescription",
    "FrozenBackbone",
    "LicenseWarning",
    "Node",
    "NodeDescription",
    "backbone_names",
    "broad_nodes",
    "create_backbone",
    "describe_backbone",
    "fine_nodes",
    "is_backbone",
    "license_remark",
    "list_backbones",
    "resolve_backbone_name",
    "spread_nodes",
]
