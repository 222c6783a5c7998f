"""Decoder builders: trainable maps from a latent to an image in [0, 1], for any latent and any image size."""

from collections.abc import Sequence
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
from transfervae.decoders.residual import ResidualDecoder, residual_decoder
from transfervae.decoders.vit import ViTDecoder, vit_decoder
from transfervae.options import PartTable

__all__ = [
    "DECODERS",
    "CropTo",
    "Decoder",
    "DecoderBuilder",
    "KLDecoder",
    "ResidualDecoder",
    "ViTDecoder",
    "kl_decoder",
    "pixelshuffle_decoder",
    "residual_decoder",
    "resize_decoder",
    "transpose_decoder",
    "vit_decoder",
]


@runtime_checkable
class DecoderBuilder(Protocol):
    """How decoders are made: `resize_decoder` and its siblings."""

    def __call__(self, latent_shape: Sequence[int], image_size: int | Sequence[int]) -> nn.Module:
        """Build a decoder: a module with `latent_shape` and `image_size`; options are keyword-only."""


DECODERS = PartTable(
    "decoder",
    {
        "residual": residual_decoder,
        "resize": resize_decoder,
        "transpose": transpose_decoder,
        "pixelshuffle": pixelshuffle_decoder,
        "vit": vit_decoder,
        "kl": kl_decoder,
    },
)
"""Decoder builders by name; each takes the latents' shape and the image size, and its options by keyword."""
