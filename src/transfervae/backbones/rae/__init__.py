"""The encoder of representation autoencoders (Zheng et al. 2025), as diffusers stores it."""

from transfervae.backbones.rae.config import HEAD_WIDTH, KINDS, MODEL_CLASS, Kind, RAEConfig, normalisation
from transfervae.backbones.rae.encoder import RAEEncoder, build_rae_encoder, create_rae_encoder, read_diffusers_rae
from transfervae.backbones.rae.names import NAME_MAPS, NameMap, encoder_names

__all__ = [
    "HEAD_WIDTH",
    "KINDS",
    "MODEL_CLASS",
    "NAME_MAPS",
    "Kind",
    "NameMap",
    "RAEConfig",
    "RAEEncoder",
    "build_rae_encoder",
    "create_rae_encoder",
    "encoder_names",
    "normalisation",
    "read_diffusers_rae",
]
