"""Decoder builders: trainable maps from a latent to an image in [0, 1], for any latent and any image size."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from torch import nn

from transfervae.decoders.convolutional import (
    CropTo,
    Decoder,
    pixelshuffle_decoder,
    resize_decoder,
    transpose_decoder,
)
from transfervae.decoders.kl import KLDecoder, kl_decoder
from transfervae.decoders.vit import ViTDecoder, vit_decoder

__all__ = [
    "DECODERS",
    "CropTo",
    "Decoder",
    "DecoderBuilder",
    "KLDecoder",
    "ViTDecoder",
    "kl_decoder",
    "pixelshuffle_decoder",
    "resize_decoder",
    "transpose_decoder",
    "vit_decoder",
]


@runtime_checkable
class DecoderBuilder(Protocol):
    """How decoders are made: `resize_decoder` and its siblings."""

    def __call__(
        self, latent_shape: Sequence[int], image_size: int | Sequence[int], *, width: int | None = ...
    ) -> nn.Module:
        """Build a decoder: a module with `latent_shape`, `image_size` and `config`; `width` None is its default."""


DECODERS: Mapping[str, DecoderBuilder] = MappingProxyType(
    {
        "resize": resize_decoder,
        "transpose": transpose_decoder,
        "pixelshuffle": pixelshuffle_decoder,
        "vit": vit_decoder,
        "kl": kl_decoder,
    }
)
"""Decoder builders by name."""
