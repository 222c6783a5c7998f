"""Weights, images and networks from elsewhere are read right, or refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import transfervae as tv
from tests.runs import Small
from tests.samples import make_backbone, make_vae, random_images
from transfervae.data import ToyFaces, read_pixels
from transfervae.errors import CheckpointError, FeatureValueError, ImageFileError, TransferVAEError
from transfervae.inference import encode_images, reconstruct_images
from transfervae.pictures import write_grid

NETWORK = "timm:test_resnet"


def test_networks_are_the_same_from_every_thread() -> None:
    expected = tv.create_backbone(NETWORK, weights=None).fingerprint
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with ThreadPoolExecutor(8) as pool:
        made = pool.map(lambda _: tv.create_backbone(NETWORK, weights=None).fingerprint, range(8))
    assert set(made) == {expected}
    assert torch.equal(torch.get_rng_state(), before)


def good_state() -> dict[str, Tensor]:
    import timm

    state: dict[str, Tensor] = timm.create_model("test_resnet").state_dict()
    return state


def with_one(state: dict[str, Tensor], value: float) -> dict[str, Tensor]:
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    return {**state, name: torch.full_like(state[name], value)}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda _: {}, "holds no tensors"),
        (lambda state: {name: value for name, value in state.items() if name.startswith("fc.")}, "but its classifier"),
        (lambda state: with_one(state, float("nan")), "not finite"),
        (lambda state: with_one(state, float("inf")), "not finite"),
        (lambda state: {name: value.to(torch.int64) for name, value in state.items()}, "int64 instead of"),
        (lambda state: {name: value.bool() for name, value in state.items()}, "bool instead of"),
    ],
)
def test_weights_that_hold_no_network_are_refused(suffix: str, spoil: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    state = spoil(good_state())
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    with pytest.raises(TransferVAEError, match=words):
        tv.create_backbone(NETWORK, weights=path)


def test_weights_by_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(1), ("a", 2): torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        tv.create_backbone(NETWORK, weights=tmp_path / "x.pth")


@pytest.mark.parametrize("top", [255, 65535, 2**31 - 1])
def test_tiffs_of_32_bits_are_refused(top: int, tmp_path: Path) -> None:
    values = np.linspace(0, top, 64).reshape(8, 8).astype(np.int32)
    Image.fromarray(values).save(tmp_path / "x.tiff")
    with pytest.raises(ImageFileError, match="32-bit or signed integers"):
        read_pixels(tmp_path / "x.tiff")


@pytest.mark.parametrize("suffix", ["tiff", "png", "pgm"])
def test_16_bits_are_read_as_they_were(suffix: str, tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    read = read_pixels(tmp_path / f"x.{suffix}")
    assert torch.equal(read[0], torch.from_numpy(np.rint(values / 257).astype(np.uint8)))


def test_results_that_are_not_finite_are_errors(tmp_path: Path) -> None:
    vae = tv.build_vae(make_backbone("resnet"), image_size=32, latent_dim=3, decoder=tv.Spec("resize", width=8))
    images = ToyFaces(2, 32)
    assert all(values.isfinite().all() for values in encode_images(vae, images).moments().values())
    runs: Any = ((vae.decoder, reconstruct_images), (vae.head, encode_images))
    for part, run in runs:
        next(part.parameters()).data.fill_(float("nan"))
        with pytest.raises(FeatureValueError, match="not finite"):
            run(vae, images)
    with pytest.raises(FeatureValueError, match="NaN"):
        write_grid(tmp_path / "x.png", [torch.full((1, 3, 4, 4), float("nan"))])


@pytest.mark.usefixtures("without_shape_checks")
def test_what_cannot_be_computed_with_is_refused() -> None:
    vae = make_vae()
    images = random_images()
    output = vae(images)
    with pytest.raises(TransferVAEError, match="must be a tensor"):
        vae.decode(None)  # type: ignore[arg-type]
    for beta in (float("nan"), float("inf"), -1.0):
        with pytest.raises(TransferVAEError, match="beta must be"):
            tv.losses.elbo(output, images, beta=beta)
    with pytest.raises(TransferVAEError, match="free_bits must be"):
        tv.losses.elbo(output, images, free_bits=float("nan"))
    with pytest.raises(TransferVAEError, match="floating point"):
        tv.losses.elbo(output, (255 * images).to(torch.uint8))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataset": {"workers": 2147483648}}, "workers must be at most"),
        ({"engine": {"strategy": "ddp_spawn"}}, "strategy must start"),
        ({"engine": {"strategy": "ddp_notebook"}}, "strategy must start"),
        ({"engine": {"accelerator": "tpu"}}, "engine refuses"),
        ({"engine": {"precision": "transformer-engine", "accelerator": "cpu"}}, "engine refuses"),
        ({"engine": {"devices": 0, "accelerator": "cpu"}}, "engine refuses"),
    ],
)
def test_engines_that_cannot_run_are_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(TransferVAEError, match=words):
        tv.train(Small().model, out=tmp_path, **{"dataset": {"faces": 8}, **options})
