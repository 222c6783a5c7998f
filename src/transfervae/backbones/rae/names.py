"""Names of an RAE encoder's tensors in files of diffusers, which are those of transformers' networks."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from transfervae.backbones._state_dict_names import Names, with_ends


class NameMap(NamedTuple):
    """Names of one network in one generation of transformers.

    Attributes:
        stem: Our names of single tensors to theirs.
        patches: The patch embedding.
        block: What stands before the names of a block's layers, with a place for its number.
        layers: Our names of a block's layers to theirs; query, key and value are stacked in ours.
        scales: Our names of a block's tensors without weight and bias to theirs.
        unused: Beginnings of names that the features do not depend on.
    """

    stem: Mapping[str, str]
    patches: str
    block: str
    layers: Mapping[str, str | tuple[str, ...]]
    scales: Mapping[str, str] = MappingProxyType({})
    unused: tuple[str, ...] = ()


def encoder_names(name_map: NameMap, depth: int) -> Names:
    """Our names of an encoder's tensors to theirs.

    Args:
        name_map: The network's, in one generation.
        depth: Number of blocks.
    """
    names: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in name_map.stem.items()}
    names |= with_ends({"vit.patch_embed.proj": name_map.patches, **dict(_layers(name_map, depth))})
    for index in range(depth):
        block = name_map.block.format(index)
        names |= {f"vit.blocks.{index}.{ours}": (f"{block}{theirs}",) for ours, theirs in name_map.scales.items()}
    return names


def _layers(name_map: NameMap, depth: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    for index in range(depth):
        block = name_map.block.format(index)
        for ours, theirs in name_map.layers.items():
            parts = (theirs,) if isinstance(theirs, str) else theirs
            yield f"vit.blocks.{index}.{ours}", tuple(f"{block}{part}" for part in parts)


def _projections(owner: str, query: str = "q_proj", key: str = "k_proj", value: str = "v_proj") -> tuple[str, ...]:
    return tuple(f"{owner}.{name}" for name in (query, key, value))


OLD_PROJECTIONS = _projections("attention.attention", "query", "key", "value")

DINOV2_STEM = MappingProxyType(
    {
        "vit.cls_token": "embeddings.cls_token",
        "vit.reg_token": "embeddings.register_tokens",
        "position": "embeddings.position_embeddings",
    }
)
DINOV2_LAYERS = MappingProxyType({"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"})
DINOV2_SCALES = MappingProxyType({"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"})

MAE_STEM = MappingProxyType({"vit.cls_token": "embeddings.cls_token", "position": "embeddings.position_embeddings"})
MAE_NORMS = MappingProxyType({"norm1": "layernorm_before", "norm2": "layernorm_after"})

SIGLIP_LAYERS: Mapping[str, str | tuple[str, ...]] = MappingProxyType(
    {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.qkv": _projections("self_attn"),
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
)


def _dinov2(projections: tuple[str, ...], out: str) -> NameMap:
    return NameMap(
        stem=DINOV2_STEM,
        patches="embeddings.patch_embeddings.projection",
        block="encoder.layer.{}.",
        layers=DINOV2_LAYERS | {"attn.qkv": projections, "attn.proj": out},
        scales=DINOV2_SCALES,
        unused=("embeddings.mask_token",),
    )


def _mae(block: str, layers: Mapping[str, str | tuple[str, ...]]) -> NameMap:
    return NameMap(
        stem=MAE_STEM, patches="embeddings.patch_embeddings.projection", block=block, layers={**MAE_NORMS, **layers}
    )


def _siglip(root: str) -> NameMap:
    return NameMap(
        stem={"position": f"{root}embeddings.position_embedding.weight"},
        patches=f"{root}embeddings.patch_embedding",
        block=f"{root}encoder.layers.{{}}.",
        layers=SIGLIP_LAYERS,
        unused=(f"{root}head.",),
    )


NAME_MAPS: Mapping[str, Mapping[int, NameMap]] = MappingProxyType(
    {
        "dinov2": MappingProxyType(
            {
                4: _dinov2(OLD_PROJECTIONS, "attention.output.dense"),
                5: _dinov2(_projections("attention"), "attention.o_proj"),
            }
        ),
        "siglip2": MappingProxyType({4: _siglip("vision_model."), 5: _siglip("")}),
        "mae": MappingProxyType(
            {
                4: _mae(
                    "encoder.layer.{}.",
                    {
                        "attn.qkv": OLD_PROJECTIONS,
                        "attn.proj": "attention.output.dense",
                        "mlp.fc1": "intermediate.dense",
                        "mlp.fc2": "output.dense",
                    },
                ),
                5: _mae(
                    "layers.{}.",
                    {
                        "attn.qkv": _projections("attention"),
                        "attn.proj": "attention.o_proj",
                        "mlp.fc1": "mlp.fc1",
                        "mlp.fc2": "mlp.fc2",
                    },
                ),
            }
        ),
    }
)
"""By encoder type, then by the major version of transformers."""
