"""One small backbone of each kind, and models around them."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

import transfervae as tv
from transfervae.files import digest_tensors, read_json, read_tensors, write_json, write_tensors


class Kind(NamedTuple):
    """A way to create a backbone, and an image size that it takes."""

    name: str
    node: str | int | None
    weights: str | None
    size: int


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "vgg19": Kind("vgg19", "block2_pool", None, 32),
        "resnet": Kind("timm:test_resnet", None, None, 32),
        "efficientnet": Kind("timm:test_efficientnet", 2, None, 32),
        "convnext": Kind("timm:test_convnext", -1, None, 64),
        "vit": Kind("timm:test_vit", 1, None, 32),
        "packaged": Kind("packaged", 1, "default", 32),
    }
)


def make_backbone(kind: str) -> tv.FrozenBackbone:
    """A backbone of one's own."""
    name, node, weights, _ = KINDS[kind]
    return tv.create_backbone(name, node=node, weights=weights)


@cache
def shared_backbone(kind: str) -> tv.FrozenBackbone:
    """A backbone for tests that leave it as it is."""
    return make_backbone(kind)


def make_vae(
    kind: str = "vgg19",
    *,
    head: str = "gaussian",
    latent_dim: int | None = 5,
    decoder: str = "resize",
    seed: int = 0,
) -> tv.TransferVAE:
    """A small model around a shared backbone; head and decoder are its own."""
    torch.manual_seed(seed)
    return tv.build_vae(
        shared_backbone(kind),
        image_size=KINDS[kind].size,
        head=head,
        latent_dim=latent_dim,
        decoder=tv.Spec(decoder, width=16),
    )


def random_images(kind: str = "vgg19", *, count: int = 2, seed: int = 0) -> Tensor:
    """Noise in [0, 1] of the size that goes with the kind."""
    size = KINDS[kind].size
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def save_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a configuration into a model's folder as if the model had been saved with it."""
    write_json(folder / "config.json", config)
    weights = folder / "model.safetensors"
    write_tensors(weights, read_tensors(weights).tensors, plain=json.dumps(config, sort_keys=True))


def save_state(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a model's folder as if the model had been saved with them."""
    config = {**read_json(folder / "config.json"), "tensors": digest_tensors(tensors)}
    write_json(folder / "config.json", config)
    write_tensors(folder / "model.safetensors", tensors, plain=json.dumps(config, sort_keys=True))
