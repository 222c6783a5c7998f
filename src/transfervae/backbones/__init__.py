"""Backbones: frozen pretrained networks that turn images into features."""

from transfervae.backbones.create import create_backbone
from transfervae.backbones.frozen import FrozenBackbone

__all__ = ["FrozenBackbone", "create_backbone"]
