"""Weights of other libraries, in and out."""

from transfervae.interop.keras import load_keras_vgg19
from transfervae.interop.kl import DiffusersKLDecoder, load_diffusers_kl_decoder
from transfervae.interop.rae import RAEDecoder, load_diffusers_rae, load_rae_checkpoint
from transfervae.interop.rae_export import to_diffusers_rae

__all__ = [
    "DiffusersKLDecoder",
    "RAEDecoder",
    "load_diffusers_kl_decoder",
    "load_diffusers_rae",
    "load_keras_vgg19",
    "load_rae_checkpoint",
    "to_diffusers_rae",
]
