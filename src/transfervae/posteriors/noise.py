"""Noise on latents in training, which makes decoders robust against latents that a generative model gets wrong."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from transfervae.errors import InvalidOptionError, UnknownNameError
from transfervae.shapes import Latents

NOISE_LAWS: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {"uniform": torch.rand, "half_normal": lambda *size, **options: torch.randn(*size, **options).abs()}
)
"""How strong the noise on an item is, relative to tau: u uniform in [0, 1), as the code of representation autoencoders
has it, or |N(0, 1)|, as their paper has it (Zheng et al. 2025)."""


def add_noise(latents: Latents, tau: float | Tensor, law: str, generator: torch.Generator | None) -> Latents:
    """Add tau * level * eps, with one level per item and eps standard normal.

    Args:
        latents: `[b, ...]`.
        tau: Standard deviation where the level is 1; a number, or a tensor broadcastable against the latents.
        law: Of the level, a name from `NOISE_LAWS`.
        generator: Source of randomness, on the latents' device; the global one if None.
    """
    device, dtype = latents.device, latents.dtype
    per_item = (len(latents), *(1 for _ in latents.shape[1:]))
    level = NOISE_LAWS[law](per_item, generator=generator, device=device, dtype=dtype)
    return latents + tau * level * torch.randn(latents.shape, generator=generator, device=device, dtype=dtype)


def check_noise(tau: float, law: str) -> None:
    """Check the options of noise.

    Raises:
        InvalidOptionError: If `tau` is negative or not finite.
        UnknownNameError: For another law.
    """
    if not 0 <= tau < float("inf"):
        raise InvalidOptionError(f"tau must be finite and at least 0, got {tau}.")
    if law not in NOISE_LAWS:
        raise UnknownNameError("law of noise", law, NOISE_LAWS)
