import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.testing import assert_close

import transfervae as tv
from transfervae.errors import CheckpointError, ImageSizeError, WeightsMismatchError
from transfervae.heads import SpatialGaussianHead
from transfervae.interop import load_diffusers_kl_decoder

ATTENTION = "decoder.mid_block.attentions.0"


def make_autoencoder(
    widths: tuple[int, ...] = (32, 64), *, layers_per_block: int = 1, seed: int = 0, **options: Any
) -> Any:
    """A small one whose weights are all random: norms and biases too, which otherwise start at 1 and 0."""
    torch.manual_seed(seed)
    autoencoder: Any = AutoencoderKL(
        block_out_channels=widths,
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        layers_per_block=layers_per_block,
        **options,
    )
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.add_(0.3 * torch.randn_like(parameter) / fan_in**0.5)
    return autoencoder.eval()


def as_source(autoencoder: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return dict(autoencoder.config), autoencoder.state_dict()


@torch.no_grad()
def largest_difference(autoencoder: Any, *, dtype: torch.dtype, grid: tuple[int, int] = (5, 3)) -> float:
    """Between diffusers' images and ours before clamping, in their range [-1, 1], on two non-square latents."""
    doublings = len(autoencoder.config.block_out_channels) - 1
    size = (grid[0] << doublings, grid[1] << doublings)
    decoder, _ = load_diffusers_kl_decoder(as_source(autoencoder), image_size=size)
    latents = torch.randn(2, 4, *grid, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = autoencoder.to(dtype).decode(latents).sample
    assert expected.abs().max() > 0.5
    return float((2 * decoder.to(dtype).unclamped(latents) - 1 - expected).abs().max())


@pytest.mark.parametrize("post_quant_conv", [True, False])
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize(("widths", "layers", "groups"), [((32,), 1, 32), ((32, 64), 2, 32), ((32, 32, 64, 64), 1, 8)])
def test_images_are_those_of_diffusers(
    widths: tuple[int, ...], layers: int, groups: int, *, attention: bool, post_quant_conv: bool
) -> None:
    autoencoder = make_autoencoder(
        widths,
        layers_per_block=layers,
        norm_num_groups=groups,
        mid_block_add_attention=attention,
        use_post_quant_conv=post_quant_conv,
    )
    assert largest_difference(autoencoder, dtype=torch.float32) <= 1e-5
    assert largest_difference(autoencoder, dtype=torch.float64) <= 1e-12


def test_images_are_those_of_diffusers_with_a_channel_a_group() -> None:
    autoencoder = make_autoencoder((12, 12, 12, 12), norm_num_groups=12, act_fn="swish")
    # Only in float64: so few values a group amplify rounding.
    assert largest_difference(autoencoder, dtype=torch.float64, grid=(3, 7)) <= 1e-12


@torch.no_grad()
def test_clamped_images_are_what_diffusers_pipelines_show() -> None:
    autoencoder = make_autoencoder()
    decoder, _ = load_diffusers_kl_decoder(as_source(autoencoder), image_size=(10, 6))
    latents = 3 * torch.randn(2, 4, 5, 3)
    shown = (autoencoder.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert_close(decoder(latents), shown, rtol=0, atol=1e-5)


@pytest.mark.parametrize("safetensors", [True, False])
@pytest.mark.parametrize("subfolder", ["", "vae"])
def test_a_folder_is_read(tmp_path: Path, subfolder: str, *, safetensors: bool) -> None:
    autoencoder = make_autoencoder()
    autoencoder.save_pretrained(tmp_path / subfolder, safe_serialization=safetensors)
    suffix = "safetensors" if safetensors else "bin"
    assert (tmp_path / subfolder / f"diffusion_pytorch_model.{suffix}").is_file()
    expected, _ = load_diffusers_kl_decoder(as_source(autoencoder), image_size=8)
    decoder, _ = load_diffusers_kl_decoder(tmp_path, image_size=8, subfolder=subfolder)
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(decoder(latents), expected(latents))
    assert not decoder.training


def test_early_names_of_the_attention_are_known() -> None:
    config, state = as_source(make_autoencoder())
    expected, _ = load_diffusers_kl_decoder((config, state), image_size=8)
    for early, modern in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        for kind in ("weight", "bias"):
            state[f"{ATTENTION}.{early}.{kind}"] = state.pop(f"{ATTENTION}.{modern}.{kind}")
    decoder, _ = load_diffusers_kl_decoder((config, state), image_size=8)
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(decoder(latents), expected(latents))


def test_any_image_size_has_its_latent() -> None:
    source = as_source(make_autoencoder((32, 32, 32)))
    decoder, _ = load_diffusers_kl_decoder(source, image_size=(9, 22))
    assert decoder.latent_shape == (4, 3, 6)
    assert decoder(torch.randn(1, 4, 3, 6)).shape == (1, 3, 9, 22)
    with pytest.raises(ImageSizeError):
        load_diffusers_kl_decoder(source, image_size=0)


@pytest.mark.parametrize(
    ("config", "mean", "std"),
    [
        ({}, [0.0] * 4, [1 / 0.18215] * 4),
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, [0.25] * 4, [2.0] * 4),
        (
            {"scaling_factor": 0.5, "latents_mean": [1, 2, 3, 4], "latents_std": [2, 4, 6, 8]},
            [1, 2, 3, 4],
            [4, 8, 12, 16],
        ),
    ],
)
def test_scaling_is_the_configuration_s(config: dict[str, Any], mean: list[float], std: list[float]) -> None:
    autoencoder = make_autoencoder(**config)
    _, scaling = load_diffusers_kl_decoder(as_source(autoencoder), image_size=8)
    assert_close(scaling.mean, torch.tensor(mean).float().view(4, 1, 1))
    assert_close(scaling.std, torch.tensor(std).float().view(4, 1, 1))
    latents = torch.randn(2, 4, 3, 3)
    values = autoencoder.config
    if values.latents_mean is None:
        expected = (latents - (values.shift_factor or 0)) * values.scaling_factor
        assert_close(scaling.normalise(latents), expected)


def test_misfits_are_named_as_in_the_file_and_counted() -> None:
    config, state = as_source(make_autoencoder())
    del state["decoder.conv_in.bias"]
    state["decoder.foreign"] = torch.zeros(1)
    state[f"{ATTENTION}.to_q.weight"] = torch.zeros(3)
    state["decoder.up_blocks.1.resnets.0.conv_shortcut.bias"] = torch.zeros(5)
    with pytest.raises(WeightsMismatchError) as caught:
        load_diffusers_kl_decoder((config, state), image_size=8)
    assert str(caught.value) == (
        "The weights do not fit the decoder of AutoencoderKL: decoder.conv_in.bias is missing; decoder.foreign is not"
        f" expected; {ATTENTION}.to_q.weight is [3] instead of [64, 64], and 1 more."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "AutoencoderRAE"},
            "_class_name 'AutoencoderRAE' cannot be loaded, only one with 'AutoencoderKL'",
        ),
        ({"act_fn": "gelu"}, "act_fn 'gelu' cannot be loaded, only one with 'silu' or 'swish'"),
        ({"out_channels": 1}, "out_channels 1 cannot be loaded, only one with 3"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 2}, "up_block_types ['AttnUpDecoderBlock2D'"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types ['UpDecoderBlock2D'] cannot be loaded"),
        ({"block_out_channels": 32}, "block_out_channels must be a list of numbers, got 32"),
        ({"block_out_channels": [32, 0]}, "The configuration describes no decoder: width must be a whole number"),
        ({"norm_num_groups": 5}, "The configuration describes no decoder: width must be a multiple of 5, got 32"),
        ({"layers_per_block": "two"}, "The configuration describes no decoder"),
        ({"scaling_factor": 0}, "The configuration describes no scaling of latents"),
        ({"latents_mean": [0.0]}, "The configuration describes no scaling of latents"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_configurations_of_something_else_are_refused(changes: dict[str, Any], message: str) -> None:
    config, state = as_source(make_autoencoder())
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_diffusers_kl_decoder(({**config, **changes}, state), image_size=8)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("config.json", Path.unlink, "There is no config.json in"),
        ("config.json", truncate, ""),
        ("config.json", lambda file: file.write_text("[1]"), "holds no JSON object"),
        (
            "diffusion_pytorch_model.safetensors",
            Path.unlink,
            "There is neither diffusion_pytorch_model.safetensors nor",
        ),
        ("diffusion_pytorch_model.safetensors", truncate, "cannot be read as weights"),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, file: str, spoil: Callable[[Path], object], message: str) -> None:
    make_autoencoder((32,)).save_pretrained(tmp_path)
    spoil(tmp_path / file)
    if file == "config.json" and spoil is truncate:
        (tmp_path / file).write_text(json.dumps({"act_fn": "silu"})[:-3])
        message = "cannot be read as JSON"
    with pytest.raises(CheckpointError, match=message):
        load_diffusers_kl_decoder(tmp_path, image_size=8)


def test_a_model_with_it_is_saved_and_found_again(tmp_path: Path) -> None:
    decoder, scaling = load_diffusers_kl_decoder(as_source(make_autoencoder()), image_size=(32, 48))
    backbone = tv.create_backbone("vgg19", node="block1_pool", weights=None)
    vae = tv.TransferVAE(backbone, SpatialGaussianHead((64, 1, 1), latent_dim=4), decoder, scaling=scaling).eval()
    vae.save_pretrained(tmp_path)
    again = tv.TransferVAE.from_pretrained(tmp_path)
    images = torch.rand(2, 3, 32, 48)
    assert again.scaling is not None
    assert torch.equal(again.scaling.std, scaling.std)
    assert torch.equal(again.reconstruct(images), vae.reconstruct(images))
