"""A saved model loads as it was saved, or not at all."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import transfervae as tv
from tests.samples import make_backbone, make_vae, random_images, save_state
from tests.warm import run_warm
from transfervae.cache import FeatureCache
from transfervae.data import ToyFaces
from transfervae.errors import CacheMismatchError, CheckpointError, FingerprintMismatchError
from transfervae.files import read_tensors, write_tensors


def add_to_data(network: nn.Module) -> None:
    next(network.parameters()).data.mul_(1.5)


def add_without_gradient(network: nn.Module) -> None:
    with torch.no_grad():
        next(network.parameters()).add_(0.5)


def load_other(network: nn.Module) -> None:
    network.load_state_dict({name: value + 1 for name, value in network.state_dict().items()})


def replace_a_parameter(network: nn.Module) -> None:
    module = next(module for module in network.modules() if next(module.parameters(recurse=False), None) is not None)
    name, value = next(iter(module.named_parameters(recurse=False)))
    setattr(module, name, nn.Parameter(value.detach() + 1, requires_grad=False))


def change_a_buffer(network: nn.Module) -> None:
    next(buffer for buffer in network.buffers() if buffer.is_floating_point()).data.add_(1)


CHANGES = (add_to_data, add_without_gradient, load_other, replace_a_parameter, change_a_buffer)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_backbone_that_was_changed_is_another(
    change: Callable[[nn.Module], None], dtype: torch.dtype, tmp_path: Path
) -> None:
    vae = tv.build_vae(make_backbone("resnet"), image_size=32, latent_dim=3, decoder=tv.Spec("resize", width=8))
    vae.backbone.to(dtype)
    before = vae.backbone.fingerprint
    assert before == make_backbone("resnet").fingerprint
    vae.save_pretrained(tmp_path / "a")
    change(vae.backbone.network)
    assert vae.backbone.fingerprint != before
    vae.save_pretrained(tmp_path / "b")
    with pytest.raises(FingerprintMismatchError):
        tv.TransferVAE.from_pretrained(tmp_path / "b", backbone=make_backbone("resnet"))
    tv.TransferVAE.from_pretrained(tmp_path / "a", backbone=make_backbone("resnet"))


def test_a_cache_is_refused_once_its_backbone_was_changed(tmp_path: Path) -> None:
    backbone = make_backbone("resnet")
    cache = FeatureCache.build(backbone, ToyFaces(3, 32, dtype=torch.uint8), tmp_path)
    cache.check(backbone)
    add_to_data(backbone.network)
    with pytest.raises(CacheMismatchError, match="other weights"):
        cache.check(backbone)


KILLED = """
import os, sys
from pathlib import Path
import transfervae as tv
from tests.samples import make_vae
step, folder = int(sys.argv[1]), sys.argv[2]
vae = make_vae(seed=1, latent_dim=6)
count, rename = 0, Path.replace
def dying(self, target):
    global count
    if count == step:
        os.kill(os.getpid(), 9)
    count += 1
    return rename(self, target)
Path.replace = dying
vae.save_pretrained(folder)
"""


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_save_that_is_killed_leaves_the_old_model_or_the_new_one(step: int, tmp_path: Path) -> None:
    old, new = make_vae(seed=0).eval(), make_vae(seed=1, latent_dim=6).eval()
    old.save_pretrained(tmp_path)
    done = run_warm("-c", KILLED, str(step), tmp_path, environment=os.environ)
    assert done.returncode == (0 if step == 3 else -9)
    again = tv.TransferVAE.from_pretrained(tmp_path, backbone=make_backbone("vgg19"))
    images, expected = random_images(), new if step >= 2 else old
    assert torch.equal(again.reconstruct(images), expected.reconstruct(images))
    old.save_pretrained(tmp_path)
    again = tv.TransferVAE.from_pretrained(tmp_path, backbone=make_backbone("vgg19"))
    assert torch.equal(again.reconstruct(images), old.reconstruct(images))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_files_of_two_models_do_not_make_a_third(file: str, tmp_path: Path) -> None:
    make_vae(seed=0).save_pretrained(tmp_path / "a")
    make_vae(seed=0, latent_dim=6).save_pretrained(tmp_path / "b")
    (tmp_path / "a" / file).write_bytes((tmp_path / "b" / file).read_bytes())
    with pytest.raises(CheckpointError, match="is not the one that was saved with"):
        tv.TransferVAE.from_pretrained(tmp_path / "a", backbone=make_backbone("vgg19"))


def test_every_flipped_byte_of_the_weights_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": torch.rand(3, 2), "b": torch.arange(4)}, plain="text")
    content = path.read_bytes()
    tensors = read_tensors(path).tensors
    for place in range(len(content)):
        path.write_bytes(bytes([*content[:place], content[place] ^ 16, *content[place + 1 :]]))
        try:
            read = read_tensors(path)
        except CheckpointError:
            continue
        assert read.plain == "text"
        assert all(torch.equal(read.tensors[name], value) for name, value in tensors.items()), place


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_what_is_not_finite_is_neither_saved_nor_loaded(value: float, tmp_path: Path) -> None:
    vae = make_vae()
    vae.save_pretrained(tmp_path)
    stored = read_tensors(tmp_path / "model.safetensors")
    name = next(iter(stored.tensors))
    spoilt = stored.tensors[name].double()  # 1e300 is finite until it is loaded
    spoilt.view(-1)[0] = value
    save_state(tmp_path, {**stored.tensors, name: spoilt})
    with pytest.raises(CheckpointError, match="not finite"):
        tv.TransferVAE.from_pretrained(tmp_path, backbone=make_backbone("vgg19"))
    next(vae.decoder.parameters()).data.copy_(torch.tensor(value, dtype=torch.float64))
    with pytest.raises(CheckpointError, match="not finite"):
        vae.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    make_vae().save_pretrained(tmp_path)
    stored = read_tensors(tmp_path / "model.safetensors")
    cast = {name: value.to(dtype) for name, value in stored.tensors.items()}
    save_state(tmp_path, cast)
    with pytest.raises(CheckpointError, match="do not fit"):
        tv.TransferVAE.from_pretrained(tmp_path, backbone=make_backbone("vgg19"))


def test_a_cast_back_is_another_network() -> None:
    backbone = make_backbone("resnet")
    before = backbone.fingerprint
    assert backbone.double().fingerprint == before
    assert backbone.float().fingerprint == before
    assert backbone.bfloat16().fingerprint == before
    assert backbone.float().fingerprint != before


def test_parts_of_a_network_that_were_set_to_training_are_frozen_again() -> None:
    backbone = make_backbone("resnet")
    images = random_images("resnet")
    expected = backbone(images)
    norm = next(module for module in backbone.network.modules() if isinstance(module, nn.BatchNorm2d))
    norm.train()
    assert torch.equal(backbone(images), expected)
    assert backbone.fingerprint == make_backbone("resnet").fingerprint


def test_two_saves_that_are_killed_lose_no_model(tmp_path: Path) -> None:
    make_vae(seed=0).save_pretrained(tmp_path)
    for step, dims in ((2, 6), (1, 7)):  # the second of them once its tensors are there, and before its configuration
        script = KILLED.replace("latent_dim=6", f"latent_dim={dims}")
        done = run_warm("-c", script, str(step), tmp_path, environment=os.environ)
        assert done.returncode == -9
    again = tv.TransferVAE.from_pretrained(tmp_path, backbone=make_backbone("vgg19"))
    assert again.latent_shape == (6,)


def test_headers_with_impossible_shapes_are_refused(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}'
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match="damaged"):
        read_tensors(tmp_path / "x.safetensors")
