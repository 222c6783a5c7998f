import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers.models.autoencoders.autoencoder_rae import AutoencoderRAE
from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder as TheirDecoder
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.testing import assert_close
from transformers import SiglipVisionModel

import transfervae as tv
from transfervae.backbones.rae import RAEConfig, build_rae_encoder
from transfervae.backbones.rae.names import NAME_MAPS, encoder_names
from transfervae.decoders import vit_decoder
from transfervae.decoders.vit import sine_cosine_positions
from transfervae.errors import (
    CheckpointError,
    ImageSizeError,
    InvalidOptionError,
    TransferVAEError,
    UnknownNameError,
    UnsupportedBackboneError,
    WeightsMismatchError,
    WeightsUnavailableError,
)
from transfervae.heads import DeterministicHead, SpatialGaussianHead
from transfervae.interop import load_diffusers_rae, load_rae_checkpoint, to_diffusers_rae
from transfervae.scaling import LatentScaling

TOLERANCE = 1e-5
TRANSFORMERS = int(version("transformers").partition(".")[0])

ENCODERS = {"dinov2": 14, "siglip2": 16, "mae": 16}
"""Type and patch."""

each_encoder = pytest.mark.parametrize("kind", ENCODERS)


@pytest.fixture(autouse=True, scope="module")
def _siglip_as_diffusers_expects_it() -> Any:
    """diffusers 0.42 reaches into a `vision_model` that transformers 5 has merged into its owner."""
    with pytest.MonkeyPatch.context() as patch:
        if TRANSFORMERS >= 5:
            patch.setattr(SiglipVisionModel, "vision_model", property(lambda model: model), raising=False)
        yield


def randomise(module: nn.Module, seed: int) -> None:
    """Random weights large enough to tell a mistake, for norms, biases and scales too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim in (2, 4) else 1
            noise = torch.randn(parameter.shape, generator=generator) * (1 if fan_in > 1 else 0.3) / fan_in**0.5
            parameter.add_(noise)


def make_theirs(
    kind: str = "mae", *, cells: int = 3, patch: int = 8, statistics: tuple[int, ...] | None = None, **options: Any
) -> AutoencoderRAE:
    """diffusers' own model, small, with random weights, and statistics of a shape `[128, ...]`."""
    torch.manual_seed(1)
    if statistics is not None:
        options |= {"latents_mean": torch.randn(128, *statistics), "latents_std": 1 + torch.rand(128, *statistics)}
    defaults = {
        "encoder_type": kind,
        "encoder_hidden_size": 128,
        "encoder_patch_size": ENCODERS[kind],
        "encoder_num_hidden_layers": 2,
        "encoder_input_size": cells * ENCODERS[kind],
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 48,
        "patch_size": patch,
        "encoder_norm_mean": [0.5, 0.4, 0.6],
        "encoder_norm_std": [0.3, 0.2, 0.25],
    }
    theirs: AutoencoderRAE = AutoencoderRAE(**{**defaults, **options})
    randomise(theirs, seed=2)
    theirs.eval().requires_grad_(requires_grad=False)
    return theirs


@cache
def shared(kind: str = "mae") -> AutoencoderRAE:
    """One for tests that leave it as it is."""
    return make_theirs(kind, statistics=(3, 3), noise_tau=0.5)


def as_source(theirs: AutoencoderRAE) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return dict(theirs.config), theirs.state_dict()


def random_images(theirs: AutoencoderRAE, count: int = 2) -> Tensor:
    side = theirs.decoder_image_size
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def unclamped(vae: tv.TransferVAE, latents: Tensor) -> Tensor:
    images: Tensor = vae.decoder.unclamped(latents)  # type: ignore[operator]
    return images


def largest(first: Tensor, second: Tensor) -> float:
    """Largest difference of two tensors, the second of which is far from constant."""
    assert second.std() > 0.05
    return (first - second).abs().max().item()


@torch.no_grad()
def compare(vae: tv.TransferVAE, theirs: AutoencoderRAE) -> dict[str, float]:
    """Largest differences of encoding, decoding and both, before clamping."""
    images = random_images(theirs)
    latents = theirs.encode(images).latent
    own = vae.encode(images, scaled=vae.scaling is not None).mode()
    if vae.scaling is None:
        own = own / (1 + 1e-5)  # diffusers adds it to a deviation of 1 that nobody measured
    restored = latents * (1 + 1e-5) if vae.scaling is None else vae.scaling.restore(latents)
    return {
        "encode": largest(own, latents),
        "decode": largest(unclamped(vae, restored), theirs.decode(latents).sample),
        "forward": largest(unclamped(vae, vae.encode(images).mode()), theirs(images).sample),
        "clamped": largest(vae(images).reconstruction, theirs(images).sample.clamp(0, 1)),
    }


@each_encoder
@pytest.mark.parametrize("statistics", [None, (1, 1), (3, 3)], ids=["none", "channel", "position"])
def test_encodes_and_decodes_as_diffusers_does(kind: str, statistics: tuple[int, ...] | None) -> None:
    theirs = make_theirs(kind, statistics=statistics)
    vae = load_diffusers_rae(as_source(theirs))
    differences = compare(vae, theirs)
    assert (vae.scaling is None) == (statistics is None)
    assert max(differences.values()) <= TOLERANCE, differences


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("siglip2", {"cells": 16, "patch": 16}),  # position embedding and images as they are
        ("siglip2", {"cells": 4, "patch": 16}),  # images as they are
        ("mae", {"cells": 2, "patch": 21}),
        ("dinov2", {"cells": 5, "patch": 3, "encoder_norm_mean": None, "encoder_norm_std": None}),
        ("dinov2", {"statistics": (3, 3), "scaling_factor": 0.4}),
        ("mae", {"scaling_factor": 0.4}),
    ],
)
def test_other_configurations_agree_too(kind: str, options: dict[str, Any]) -> None:
    theirs = make_theirs(kind, **options)
    differences = compare(load_diffusers_rae(as_source(theirs)), theirs)
    assert max(differences.values()) <= TOLERANCE, differences


def test_statistics_of_tokens_are_laid_out_as_maps() -> None:
    torch.manual_seed(1)
    mean, std = torch.randn(9, 128), 0.5 + torch.rand(9, 128)
    theirs = make_theirs(reshape_to_2d=False, latents_mean=mean, latents_std=std)
    images = random_images(theirs)
    own = load_diffusers_rae(as_source(theirs)).encode(images, scaled=True).mode()
    assert largest(own.flatten(2).transpose(1, 2), theirs.encode(images).latent) <= TOLERANCE


@each_encoder
def test_sides_of_images_stay_in_proportion(kind: str) -> None:
    """A wide image gives the latents of diffusers' own encoder on the wide image that it would be scaled to."""
    theirs = shared(kind)
    source = as_source(theirs)
    vae = load_diffusers_rae(
        ({**source[0], "latents_mean": None, "latents_std": None}, bare(source[1])), image_size=(16, 32)
    )
    images = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(3))
    patch = ENCODERS[kind]
    scaled = interpolate(images, size=(2 * patch, 4 * patch), mode="bicubic", align_corners=False)
    scaled = (scaled - theirs.encoder_mean) / theirs.encoder_std
    run: Any = theirs._encoder_forward_fn
    tokens = run(theirs.encoder, scaled, patch) if kind == "mae" else run(theirs.encoder, scaled)
    expected = tokens.transpose(1, 2).unflatten(2, (2, 4))
    assert largest(vae.encode(images).mode(), expected) <= TOLERANCE
    assert vae(images).reconstruction.shape == images.shape


def bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without statistics of latents."""
    return {name: value for name, value in state.items() if not name.startswith("_latents")}


@pytest.mark.usefixtures("without_shape_checks")
def test_a_size_that_patches_do_not_divide_names_sizes_that_they_do() -> None:
    vae = load_diffusers_rae(as_source(shared()))
    with pytest.raises(ImageSizeError, match=r"cannot take 25x24 images; .* 24x24.*a side is no multiple of 8"):
        vae.backbone(torch.rand(1, 3, 25, 24))


@each_encoder
def test_names_of_both_generations_of_transformers_are_read(kind: str) -> None:
    theirs = shared(kind)
    config, state = as_source(theirs)
    expected = load_diffusers_rae((config, state))
    for name_map in NAME_MAPS[kind].values():
        own, other = (encoder_names(some, 2) for some in (NAME_MAPS[kind][TRANSFORMERS], name_map))
        renamed = {
            f"encoder.{new}": state[f"encoder.{old}"]
            for ours in own
            for old, new in zip(own[ours], other[ours], strict=True)
        }
        rest = {name: value for name, value in state.items() if not name.startswith("encoder.")}
        vae = load_diffusers_rae((config, {**rest, **renamed}))
        assert vae.backbone.fingerprint == expected.backbone.fingerprint


def test_published_names_of_the_first_generation() -> None:
    """As in the files on the Hub, which transformers 4 wrote."""
    old = {
        kind: {part for parts in encoder_names(NAME_MAPS[kind][4], 1).values() for part in parts} for kind in NAME_MAPS
    }
    assert {
        "encoder.layer.0.attention.attention.query.weight",
        "encoder.layer.0.attention.output.dense.bias",
        "encoder.layer.0.layer_scale1.lambda1",
    } <= old["dinov2"]
    assert {"encoder.layer.0.intermediate.dense.weight", "encoder.layer.0.output.dense.weight"} <= old["mae"]
    assert {"vision_model.encoder.layers.0.self_attn.out_proj.weight"} <= old["siglip2"]


def test_noise_of_training_is_the_configuration_s() -> None:
    vae = load_diffusers_rae(as_source(shared()))
    assert isinstance(vae.head, DeterministicHead)
    assert vae.head.tau == 0.5
    assert not vae.training


@each_encoder
def test_a_folder_is_found_again_after_saving(kind: str, tmp_path: Path) -> None:
    theirs = shared(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    vae = load_diffusers_rae(tmp_path / "theirs")
    vae.save_pretrained(tmp_path / "ours")
    again = tv.TransferVAE.from_pretrained(tmp_path / "ours")
    images = random_images(theirs)
    assert torch.equal(again(images).reconstruction, vae(images).reconstruction)
    file = tmp_path / "theirs" / "diffusion_pytorch_model.safetensors"
    from_file = tv.create_backbone("diffusers_rae", weights=file)
    assert from_file.fingerprint == vae.backbone.fingerprint
    assert not (tmp_path / "ours" / "model.safetensors").read_bytes().count(b"vit.blocks")


def test_a_model_that_diffusers_wrote_in_shards_is_read(tmp_path: Path) -> None:
    theirs = shared()
    theirs.save_pretrained(tmp_path, max_shard_size="500KB")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    assert len({*json.loads(index.read_bytes())["weight_map"].values()}) > 1
    expected = load_diffusers_rae(as_source(theirs))
    images = random_images(theirs)
    assert torch.equal(load_diffusers_rae(tmp_path)(images).reconstruction, expected(images).reconstruction)
    for weights in (tmp_path, index):
        backbone = tv.create_backbone("diffusers_rae", weights=weights)
        assert backbone.fingerprint == expected.backbone.fingerprint


def test_the_fingerprint_knows_the_sizes_that_images_are_resized_to() -> None:
    config, state = as_source(shared())
    other = build_rae_encoder(RAEConfig.parse({**config, "patch_size": 4}), state, weights=None)
    same = build_rae_encoder(RAEConfig.parse(config), state, weights=None)
    assert same.fingerprint == load_diffusers_rae((config, state)).backbone.fingerprint
    assert other.fingerprint != same.fingerprint


def test_a_model_from_memory_is_read_with_its_backbone(tmp_path: Path) -> None:
    vae = load_diffusers_rae(as_source(shared()))
    vae.save_pretrained(tmp_path)
    again = tv.TransferVAE.from_pretrained(tmp_path, backbone=vae.backbone)
    images = random_images(shared())
    assert torch.equal(again(images).reconstruction, vae(images).reconstruction)
    with pytest.raises(WeightsUnavailableError, match="give weights=FOLDER"):
        tv.TransferVAE.from_pretrained(tmp_path)


def make_their_decoder(cells: int) -> TheirDecoder:
    torch.manual_seed(0)
    decoder = TheirDecoder(
        hidden_size=6,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=48,
        num_patches=cells**2,
        patch_size=2,
        image_size=2 * cells,
    )
    randomise(decoder, seed=4)
    return decoder.eval().requires_grad_(requires_grad=False)


ORIGINAL = (
    ("to_q", "attention.query"),
    ("to_k", "attention.key"),
    ("to_v", "attention.value"),
    ("to_out.0", "output.dense"),
)


def in_the_original_s_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for theirs, original in ORIGINAL:
            name = name.replace(f"attention.{theirs}.", f"attention.{original}.")  # noqa: PLW2901
        renamed[name] = value
    return renamed


@pytest.mark.parametrize(("cells", "positions"), [(16, "rae"), (16, "diffusers"), (32, "diffusers"), (32, "rae")])
def test_a_decoder_with_the_original_s_names(cells: int, positions: str) -> None:
    theirs = make_their_decoder(cells)
    state = in_the_original_s_names(theirs.state_dict())
    decoder, scaling = load_rae_checkpoint(state, image_size=2 * cells, heads=4, positions=positions)
    if positions == "rae":  # what the original code computes, instead of diffusers' port of it
        position = original_positions(cells)
        theirs.decoder_pos_embed = torch.cat([torch.zeros(1, 1, 32), position[None]], dim=1)
    latents = torch.randn(2, 6, cells, cells)
    expected = theirs.unpatchify(theirs(latents.flatten(2).transpose(1, 2)).logits)
    with torch.no_grad():
        difference = largest(decoder.unclamped(latents), expected * decoder.std + decoder.mean)
    assert scaling is None
    assert difference <= TOLERANCE


def original_positions(cells: int) -> Tensor:
    """Diffusers' formula on a grid that counts: with the base size that makes its factor 1."""
    positions: Tensor = get_2d_sincos_pos_embed(32, cells, base_size=cells, output_type="pt")
    return positions.float()


@pytest.mark.parametrize("cells", [16, 32])
def test_positions_are_diffusers_and_the_original_s(cells: int) -> None:
    theirs = get_2d_sincos_pos_embed(32, cells, output_type="pt").float()
    own = sine_cosine_positions(32, (cells, cells), "diffusers")
    assert_close(own, theirs, rtol=0, atol=1e-6)
    counted = sine_cosine_positions(32, (cells, cells), "rae")
    assert_close(counted, original_positions(cells), rtol=0, atol=1e-6)
    assert torch.equal(own, counted) == (cells == 16)


def test_the_conventions_give_other_images_for_32_tokens_only() -> None:
    for cells, differ in ((16, False), (32, True)):
        state = in_the_original_s_names(make_their_decoder(cells).state_dict())
        latents = torch.randn(2, 6, cells, cells)
        first, second = (
            load_rae_checkpoint(state, image_size=2 * cells, heads=4, positions=convention).decoder.unclamped(latents)
            for convention in ("rae", "diffusers")
        )
        assert torch.equal(first, second) != differ
        assert not differ or (first - second).abs().max() > 0.1


def test_statistics_of_the_original_are_scaled_by_the_root_of_the_variance(tmp_path: Path) -> None:
    state = in_the_original_s_names(make_their_decoder(16).state_dict())
    moments = {"mean": torch.randn(6, 16, 16), "var": torch.rand(6, 16, 16) * 1e-4}
    torch.save(moments, tmp_path / "stat.pt")
    torch.save({f"decoder.{name}": value for name, value in state.items()}, tmp_path / "model.pt")
    options: dict[str, Any] = {"image_size": 32, "heads": 4}
    decoder, scaling = load_rae_checkpoint(tmp_path / "model.pt", statistics=tmp_path / "stat.pt", **options)
    latents = torch.randn(2, 6, 16, 16)
    assert scaling is not None
    expected = latents * (moments["var"] + 1e-5).sqrt() + moments["mean"]
    assert_close(scaling.restore(latents), expected, rtol=0, atol=1e-6)
    assert torch.equal(decoder(latents), load_rae_checkpoint(state, **options).decoder(latents))


def test_stored_positions_must_be_the_computed_ones() -> None:
    state = in_the_original_s_names(make_their_decoder(32).state_dict())
    stored = torch.cat([torch.zeros(1, 1, 32), original_positions(32)[None]], dim=1)
    state["decoder_pos_embed"] = stored
    load_rae_checkpoint(state, image_size=64, heads=4)
    with pytest.raises(WeightsMismatchError, match=r"not that of 32x32 tokens with positions='diffusers'"):
        load_rae_checkpoint(state, image_size=64, heads=4, positions="diffusers")
    with pytest.raises(WeightsMismatchError, match="not that of 16x16 tokens"):
        load_rae_checkpoint(state, image_size=32, heads=4)


@each_encoder
def test_diffusers_opens_what_is_written(kind: str, tmp_path: Path) -> None:
    vae = load_diffusers_rae(as_source(shared(kind)))
    to_diffusers_rae(vae, tmp_path, transformers=TRANSFORMERS)
    theirs, report = AutoencoderRAE.from_pretrained(tmp_path, output_loading_info=True)
    differences = compare(vae, theirs.eval())
    assert not any(report.values())
    assert max(differences.values()) <= TOLERANCE, differences
    assert theirs.config.noise_tau == 0.5
    again = load_diffusers_rae(tmp_path)
    assert again.backbone.fingerprint == vae.backbone.fingerprint


def test_other_settings_of_the_output_are_folded_in(tmp_path: Path) -> None:
    backbone = load_diffusers_rae(as_source(shared())).backbone
    decoder = vit_decoder((128, 3, 3), 24, width=16, depth=1, positions="diffusers")
    randomise(decoder, seed=5)
    vae = tv.TransferVAE(backbone, DeterministicHead((1, 1, 1)), decoder).eval()
    to_diffusers_rae(vae, tmp_path, transformers=TRANSFORMERS)
    differences = compare(vae, AutoencoderRAE.from_pretrained(tmp_path).eval())
    assert max(differences.values()) <= TOLERANCE, differences


def make_timm_vae(name: str, size: int, **options: Any) -> tv.TransferVAE:
    backbone = tv.create_backbone(f"timm:{name}", weights=None, **{"node": 0, "norm": True, **options})
    randomise(backbone, seed=6)
    channels, rows, columns = backbone.feature_shape(size)
    decoder = vit_decoder((channels, rows, columns), size, width=16, depth=1, positions="diffusers")
    return tv.TransferVAE(backbone, DeterministicHead((1, 1, 1)), decoder).eval()


@pytest.mark.parametrize(
    ("name", "size", "tolerance"),
    [
        ("vit_small_patch14_reg4_dinov2", 42, TOLERANCE),
        ("vit_base_patch16_224", 224, 5 * TOLERANCE),  # timm's epsilon is 1e-6, where diffusers' MAE has 1e-12
    ],
    ids=["dinov2", "mae"],
)
def test_vision_transformers_of_timm_are_written_where_diffusers_has_them(
    name: str, size: int, tolerance: float, tmp_path: Path
) -> None:
    vae = make_timm_vae(name, size)
    channels = vae.latent_shape[0]
    vae.scaling = LatentScaling(torch.randn(channels, 1, 1), 0.5 + torch.rand(channels, 1, 1))
    to_diffusers_rae(vae, tmp_path, transformers=TRANSFORMERS)
    differences = compare(vae, AutoencoderRAE.from_pretrained(tmp_path).eval())
    assert max(differences.values()) <= tolerance, differences


def without_norm() -> tv.TransferVAE:
    return make_timm_vae("vit_small_patch14_reg4_dinov2", 42, norm=False)


def of_another_size() -> tv.TransferVAE:
    return make_timm_vae("vit_base_patch16_224", 32)


def with_other_tokens() -> tv.TransferVAE:
    return make_timm_vae("test_vit", 32)


def with_a_convolutional_network() -> tv.TransferVAE:
    backbone = tv.create_backbone("timm:test_resnet", weights=None)
    shape = backbone.feature_shape(32)
    decoder = vit_decoder(shape, 32, width=16, depth=1, positions="diffusers")
    return tv.TransferVAE(backbone, DeterministicHead((1, 1, 1)), decoder)


def with_a_gaussian_head() -> tv.TransferVAE:
    backbone = load_diffusers_rae(as_source(shared())).backbone
    decoder = vit_decoder((4, 3, 3), 24, width=16, depth=1, positions="diffusers")
    return tv.TransferVAE(backbone, SpatialGaussianHead((128, 1, 1), latent_dim=4), decoder)


def with_another_decoder() -> tv.TransferVAE:
    backbone = load_diffusers_rae(as_source(shared())).backbone
    return tv.TransferVAE(backbone, DeterministicHead((1, 1, 1)), tv.decoders.resize_decoder((128, 3, 3), 24, width=8))


def with_counted_positions() -> tv.TransferVAE:
    backbone = load_diffusers_rae(as_source(shared())).backbone
    return tv.TransferVAE(backbone, DeterministicHead((1, 1, 1)), vit_decoder((128, 3, 3), 24, width=16, depth=1))


def for_wide_images() -> tv.TransferVAE:
    config, state = as_source(shared())
    config |= {"latents_mean": None, "latents_std": None}
    return load_diffusers_rae((config, bare(state)), image_size=(24, 32))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (with_a_gaussian_head, InvalidOptionError, "cannot hold a SpatialGaussianHead, only a DeterministicHead"),
        (with_another_decoder, InvalidOptionError, "only a ViTDecoder"),
        (with_counted_positions, InvalidOptionError, "cannot hold positions='rae' for 3x3 latents"),
        (for_wide_images, InvalidOptionError, "cannot hold 3x4 latents for 24x32 images, only square ones"),
        (with_a_convolutional_network, UnsupportedBackboneError, "no encoder"),
        (with_other_tokens, UnsupportedBackboneError, "fit neither dinov2 nor siglip2 nor mae"),
        (without_norm, UnsupportedBackboneError, "it must be read at one block, with norm=True"),
        (of_another_size, UnsupportedBackboneError, "use images of 224 pixels a side"),
    ],
)
def test_what_diffusers_cannot_hold_is_said(
    make: Callable[[], tv.TransferVAE], error: type[TransferVAEError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        to_diffusers_rae(make(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_names_are_written_for_transformers_4_and_5_only(tmp_path: Path) -> None:
    vae = load_diffusers_rae(as_source(shared()))
    to_diffusers_rae(vae, tmp_path, transformers=4)
    names = safetensors.torch.load_file(tmp_path / "diffusion_pytorch_model.safetensors").keys()
    assert "encoder.encoder.layer.1.attention.attention.query.weight" in names
    with pytest.raises(UnknownNameError, match="Unknown major version of transformers '3'"):
        to_diffusers_rae(vae, tmp_path, transformers=3)


def spoil(spoiled: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config, state = as_source(shared())
    config, state = dict(config), dict(state)
    spoiled(config, state)
    return config, state


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("spoiled", "error", "message"),
    [
        (lambda config, _: config.update(encoder_type="dino"), UnknownNameError, "Did you mean 'dinov2'?"),
        (lambda config, _: config.update(_class_name="AutoencoderKL"), CheckpointError, "not of AutoencoderRAE"),
        (
            lambda config, _: config.update(patch_size="8"),
            CheckpointError,
            "patch_size must be a whole number above 0, got '8'",
        ),
        (
            lambda config, _: config.update(patch_size=0),
            CheckpointError,
            "patch_size must be a whole number above 0, got 0",
        ),
        (
            lambda config, _: config.update(encoder_input_size=50),
            CheckpointError,
            "encoder_input_size must be a multiple of 16, got 50",
        ),
        (lambda config, _: config.update(num_channels=4), CheckpointError, "only RGB"),
        (lambda config, _: config.update(noise_tau="high"), CheckpointError, "at least 0, got 'high'"),
        (lambda config, _: config.update(scaling_factor=0), CheckpointError, "scaling_factor must be above 0, got 0"),
        (lambda _, state: state.pop("decoder.decoder_norm.bias"), WeightsMismatchError, "decoder_norm.bias is missing"),
        (lambda _, state: state.update(stray=torch.ones(1)), WeightsMismatchError, "stray is not expected"),
        (
            lambda _, state: state.update({"encoder.embeddings.cls_token": torch.ones(1, 1, 5)}),
            WeightsMismatchError,
            "embeddings.cls_token is [1, 1, 5] instead of [1, 1, 128]",
        ),
        (
            lambda _, state: state.update({"_latents_mean": torch.ones(128, 2, 2)}),
            CheckpointError,
            "The latents' statistics [128, 2, 2] do not fit latents [128, 3, 3]",
        ),
    ],
)
def test_what_does_not_fit_is_named(spoiled: Any, error: type[TransferVAEError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        load_diffusers_rae(spoil(spoiled))


def test_three_misfits_are_named_and_the_others_counted() -> None:
    config, state = as_source(shared())
    state = {name: value for name, value in state.items() if not name.startswith("decoder.decoder_layers.1.")}
    with pytest.raises(WeightsMismatchError, match=r"(.* is missing){3}, and 13 more"):
        load_diffusers_rae((config, state))


@pytest.mark.parametrize(
    ("spoiled", "options", "error", "message"),
    [
        (lambda state: state.pop("decoder_embed.weight"), {}, WeightsMismatchError, "decoder_embed.weight is missing"),
        (
            lambda state: state.pop("decoder_layers.1.output.dense.bias"),
            {},
            WeightsMismatchError,
            "decoder_layers.1.output.dense.bias is missing",
        ),
        (lambda _: None, {"heads": None}, InvalidOptionError, "say how many heads it has with heads="),
        (lambda _: None, {"image_size": 33}, ImageSizeError, "a multiple of the decoder's patch, 2, got (33, 33)"),
        (lambda _: None, {"statistics": {"mean": torch.zeros(1)}}, CheckpointError, "should hold mean and var"),
        (lambda _: None, {"positions": "both"}, UnknownNameError, "Unknown convention of positions"),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused(
    spoiled: Callable[[dict[str, Tensor]], None],
    options: dict[str, Any],
    error: type[TransferVAEError],
    message: str,
) -> None:
    state = in_the_original_s_names(make_their_decoder(16).state_dict())
    spoiled(state)
    with pytest.raises(error, match=re.escape(message)):
        load_rae_checkpoint(state, **{"image_size": 32, "heads": 4, **options})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "There is no config.json"),
        ({"config.json": b"{"}, "cannot be read as JSON"),
        ({"config.json": b"[]"}, "holds no JSON object"),
        ({"config.json": b"{}"}, "There is neither diffusion_pytorch_model.safetensors nor"),
        ({"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"junk"}, "cannot be read as weights"),
    ],
)
def test_a_folder_that_holds_no_model_is_refused(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        tv.create_backbone("diffusers_rae", weights=tmp_path)
    with pytest.raises(CheckpointError):
        load_diffusers_rae(tmp_path)


def test_the_backbone_has_one_node_and_no_weights_of_its_own(tmp_path: Path) -> None:
    shared().save_pretrained(tmp_path)
    with pytest.raises(UnknownNameError, match="Unknown node of diffusers_rae '3'"):
        tv.create_backbone("diffusers_rae", node=3, weights=tmp_path)
    for weights in ("default", None):
        with pytest.raises(WeightsUnavailableError, match="give weights=FOLDER"):
            tv.create_backbone("diffusers_rae", weights=weights)


def test_a_name_without_a_network_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailableError, match=r"'nobody/no-such-rae' .* give its folder instead"):
        load_diffusers_rae("nobody/no-such-rae")


def test_a_name_in_the_hub_s_cache_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--lab--rae" / "snapshots" / "abc"
    shared().save_pretrained(snapshot)
    (tmp_path / "models--lab--rae" / "refs").mkdir()
    (tmp_path / "models--lab--rae" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    vae = load_diffusers_rae("lab/rae")
    assert vae.backbone.config["weights"] == str(snapshot)
    assert json.loads((snapshot / "config.json").read_text())["encoder_type"] == "mae"
