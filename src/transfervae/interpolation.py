"""Paths between latents."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from transfervae.shapes import Latents

Interpolation = Callable[[Latents, Latents, Float[Tensor, " t"]], Float[Tensor, "b t *latent"]]


def linear(start: Latents, end: Latents, weight: Float[Tensor, " t"]) -> Float[Tensor, "b t *latent"]:
    """Straight line: (1 - t) start + t end.

    Args:
        start: Latents at t = 0, `[b, ...]`.
        end: Latents at t = 1, `[b, ...]`.
        weight: Values of t, `[t]`.

    Returns:
        `[b, t, ...]`.
    """
    return torch.lerp(start.unsqueeze(1), end.unsqueeze(1), _spread(weight, start))


def spherical(start: Latents, end: Latents, weight: Float[Tensor, " t"]) -> Float[Tensor, "b t *latent"]:
    """Great-circle arc (Shoemake 1985), which keeps the norm where Gaussian latents lie.

    With omega the angle between the two latents: sin((1-t) omega)/sin(omega) start + sin(t omega)/sin(omega) end. Where
    the angle is too small, or too close to pi for the arc to be defined, the straight line is taken.

    Args:
        start: Latents at t = 0, `[b, ...]`.
        end: Latents at t = 1, `[b, ...]`.
        weight: Values of t, `[t]`.

    Returns:
        `[b, t, ...]`.
    """
    flat_start, flat_end = start.flatten(1), end.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(flat_start, flat_end, dim=1).clamp(-1, 1)
    omega = cosine.acos().view(-1, 1, *[1] * (start.ndim - 1))
    t = _spread(weight, start)
    defined = omega.sin() > 1e-3
    safe_omega = torch.where(defined, omega, 1.0)
    arc = ((1 - t) * safe_omega).sin() * start.unsqueeze(1) + (t * safe_omega).sin() * end.unsqueeze(1)
    return torch.where(defined, arc / safe_omega.sin(), linear(start, end, weight))


INTERPOLATIONS: Mapping[str, Interpolation] = MappingProxyType({"linear": linear, "spherical": spherical})


def _spread(weight: Tensor, latent: Tensor) -> Tensor:
    return weight.view(1, -1, *[1] * (latent.ndim - 1))
