import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import transfervae as tv
from tests.samples import KINDS, make_backbone, make_vae, random_images, save_config, save_state, shared_backbone
from tests.strategies import SEEDS
from tests.warm import run_warm
from transfervae.errors import (
    CheckpointError,
    FingerprintMismatchError,
    ImageSizeError,
    InvalidImageError,
    InvalidOptionError,
    ShapeError,
    UnknownNameError,
    UnknownOptionError,
    WeightsUnavailableError,
)
from transfervae.files import read_tensors
from transfervae.heads import HEADS
from transfervae.shapes import check_image_tensor

ROOT = Path(__file__).parents[1]
FEW = settings(max_examples=6)

each_kind = pytest.mark.parametrize("kind", KINDS)
each_head = pytest.mark.parametrize("head", HEADS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make_vae().save_pretrained(folder)
    return folder


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def outputs(vae: tv.TransferVAE, images: Tensor, seed: int = 0) -> list[Tensor]:
    output = vae(images, generator=seeded(seed))
    return [output.reconstruction, output.posterior.mean, output.posterior.logvar, output.latent]


def all_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_kind
@pytest.mark.parametrize("decoder", ["resize", "transpose", "pixelshuffle"])
def test_output_has_the_size_of_the_images(kind: str, decoder: str) -> None:
    vae, images = make_vae(kind, decoder=decoder), random_images(kind, count=3)
    output = vae(images)
    assert output.reconstruction.shape == images.shape
    assert output.latent.shape == output.posterior.mean.shape == (3, 5)
    assert ((output.reconstruction >= 0) & (output.reconstruction <= 1)).all()


@FEW
@given(size=st.tuples(st.integers(4, 40), st.integers(4, 40)), latent_dim=st.integers(1, 9))
def test_any_size_comes_out_as_it_went_in(size: tuple[int, int], latent_dim: int) -> None:
    vae = tv.build_vae(
        shared_backbone("vgg19"), image_size=size, latent_dim=latent_dim, decoder=tv.Spec("resize", width=16)
    )
    assert vae(torch.rand(2, 3, *size)).reconstruction.shape == (2, 3, *size)


@each_kind
def test_every_trainable_parameter_receives_a_gradient(kind: str) -> None:
    vae, images = make_vae(kind), random_images(kind)
    tv.losses.elbo(vae(images), images).total.backward()
    assert all(parameter.grad is not None for parameter in vae.trainable_parameters())
    assert all(parameter.grad is None for parameter in vae.backbone.parameters())


def test_a_few_steps_lower_the_objective() -> None:
    vae = make_vae()
    images = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.8, 0.9]]).view(2, 3, 1, 1).expand(2, 3, 32, 32)
    before = tv.losses.elbo(vae.eval()(images), images).total
    optimiser = torch.optim.Adam(vae.train().trainable_parameters(), lr=3e-3)
    for step in range(15):
        optimiser.zero_grad()
        tv.losses.elbo(vae(images, generator=seeded(step)), images).total.backward()
        optimiser.step()
    assert tv.losses.elbo(vae.eval()(images), images).total < 0.8 * before


def test_evaluation_uses_the_mode_and_is_bit_repeatable() -> None:
    vae, images = make_vae().eval(), random_images()
    first = outputs(vae, images, seed=0)
    assert all_equal(first, outputs(vae, images, seed=1))
    assert torch.equal(vae(images).latent, vae.encode(images).mode())
    assert torch.equal(vae.reconstruct(images), first[0])


@FEW
@given(seed=SEEDS)
def test_training_draws_from_the_generator(seed: int) -> None:
    vae, images = make_vae().train(), random_images()
    first = vae(images, generator=seeded(seed))
    assert torch.equal(vae(images, generator=seeded(seed)).latent, first.latent)
    assert not torch.equal(vae(images, generator=seeded(seed + 1)).latent, first.latent)
    assert torch.equal(first.latent, first.posterior.sample(generator=seeded(seed)))
    assert torch.equal(first.reconstruction, vae.decode(first.latent))


def test_reconstruct_uses_the_mode_in_training_too() -> None:
    vae, images = make_vae().train(), random_images()
    assert torch.equal(vae.reconstruct(images), vae.reconstruct(images))


@FEW
@given(count=st.integers(1, 5), seed=SEEDS)
def test_sample_decodes_draws_from_the_prior(count: int, seed: int) -> None:
    vae = make_vae()
    images = vae.sample(count, generator=seeded(seed))
    assert images.shape == (count, 3, 32, 32)
    assert torch.equal(images, vae.decode(torch.randn(count, 5, generator=seeded(seed))))


def test_sampling_no_image_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="count"):
        make_vae().sample(0)


@pytest.mark.parametrize("method", ["spherical", "linear"])
@FEW
@given(steps=st.integers(2, 5), batch=st.integers(1, 3))
def test_interpolation_goes_from_one_reconstruction_to_the_other(method: str, steps: int, batch: int) -> None:
    vae = make_vae().eval()
    start, end = random_images(count=batch, seed=1), random_images(count=batch, seed=2)
    path = vae.interpolate(start, end, steps=steps, method=method)
    assert path.shape == (batch, steps, 3, 32, 32)
    assert_close(path[:, 0], vae.reconstruct(start), rtol=1e-4, atol=1e-5)
    assert_close(path[:, -1], vae.reconstruct(end), rtol=1e-4, atol=1e-5)


def test_interpolation_refuses_what_makes_no_path() -> None:
    vae, images = make_vae(), random_images()
    with pytest.raises(UnknownNameError, match="Did you mean 'spherical'"):
        vae.interpolate(images, images, method="sperical")
    with pytest.raises(InvalidOptionError, match="steps"):
        vae.interpolate(images, images, steps=1)
    with pytest.raises(ShapeError, match="2 and 1"):
        vae.interpolate(images, images[:1])


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("call", ["forward", "encode", "reconstruct"])
def test_images_that_do_not_fit_are_refused(call: str) -> None:
    vae = make_vae()
    with pytest.raises(ImageSizeError, match=r"32x32 images.*got 32x48.*image_size=\(32, 48\)"):
        getattr(vae, call)(torch.rand(1, 3, 32, 48))
    for wrong in (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 255 * torch.ones(1, 3, 32, 32), torch.rand(3, 32, 32)):
        with pytest.raises(InvalidImageError):
            getattr(vae, call)(wrong)
    for wrong, words in ((torch.zeros(1, 3, 9, 9, dtype=torch.uint8), "uint8"), (torch.rand(1, 1, 9, 9), "3 channels")):
        with pytest.raises(InvalidImageError, match=words):
            getattr(vae, call)(wrong)


def test_images_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make_vae().eval()
    checked = []

    def count(images: Tensor) -> Tensor:
        checked.append(images)
        return check_image_tensor(images)

    for module in ("model", "backbones.frozen"):
        monkeypatch.setattr(f"transfervae.{module}.check_image_tensor", count)
    vae(random_images())
    assert len(checked) == 1


def test_latents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[2, 6\]"):
        make_vae().decode(torch.zeros(2, 6))


def test_parts_that_do_not_fit_are_refused() -> None:
    backbone = shared_backbone("vgg19")
    head = tv.GaussianHead(backbone.feature_shape(32), latent_dim=4)
    with pytest.raises(ShapeError, match=r"gives latents \(4,\), the decoder takes \(5,\)"):
        tv.TransferVAE(backbone, head, tv.resize_decoder((5,), 32, width=8))
    with pytest.raises(ShapeError, match="64x64 images"):
        tv.TransferVAE(backbone, head, tv.resize_decoder((4,), 64, width=8))
    with pytest.raises(ImageSizeError, match="3x64"):
        tv.TransferVAE(backbone, head, tv.resize_decoder((4,), (3, 64), width=8))


def test_build_vae_composes_what_composing_by_hand_does() -> None:
    torch.manual_seed(0)
    backbone = shared_backbone("vgg19")
    head = tv.GaussianHead(backbone.feature_shape(32), latent_dim=5)
    by_hand = tv.TransferVAE(backbone, head, tv.resize_decoder((5,), 32, width=16)).eval()
    assert all_equal(outputs(by_hand, random_images()), outputs(make_vae().eval(), random_images()))


def test_build_vae_takes_a_name_with_its_node_and_weights() -> None:
    vae = tv.build_vae(
        tv.Spec("vgg19", node="block1_pool", weights=None),
        image_size=(16, 24),
        latent_dim=3,
        decoder=tv.Spec("resize", width=8),
    )
    assert vae.backbone.provenance.node == "block1_pool"
    assert vae.image_size == (16, 24)
    assert vae.training


def test_build_vae_refuses_what_cannot_be() -> None:
    backbone = shared_backbone("vgg19")
    with pytest.raises(UnknownNameError, match="Did you mean 'resize'"):
        tv.build_vae(backbone, decoder="risize")
    with pytest.raises(InvalidOptionError, match="latent_dim"):
        tv.build_vae(backbone, image_size=32, latent_dim=0)
    with pytest.raises(UnknownNameError, match="Did you mean 'vgg19'"):
        tv.build_vae("vgg91")


@each_kind
def test_trainable_parameters_and_state_leave_the_backbone_out(kind: str) -> None:
    vae = make_vae(kind)
    frozen = {id(parameter) for parameter in vae.backbone.parameters()}
    trainable = list(vae.trainable_parameters())
    assert all(parameter.requires_grad for parameter in trainable)
    assert not frozen & {id(parameter) for parameter in trainable}
    assert len(trainable) + len(frozen) == len(list(vae.parameters()))
    assert all(name.startswith(("head.", "decoder.")) for name in vae.trainable_state())
    assert sum(value.numel() for value in vae.trainable_state().values()) == sum(p.numel() for p in trainable)


@each_kind
def test_saved_and_loaded_gives_bit_identical_outputs(kind: str, tmp_path: Path) -> None:
    vae, images = make_vae(kind), random_images(kind)
    vae.save_pretrained(tmp_path / "model")
    again = tv.TransferVAE.from_pretrained(tmp_path / "model")
    assert not again.training
    assert all_equal(outputs(again, images), outputs(vae.eval(), images))
    assert torch.equal(again.sample(2, generator=seeded(3)), vae.sample(2, generator=seeded(3)))


@each_kind
def test_no_tensor_of_the_backbone_is_saved(kind: str, tmp_path: Path) -> None:
    vae = make_vae(kind)
    vae.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == vae.trainable_state().keys()
    size = sum(value.numel() * value.element_size() for value in stored.values())
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < size + 20_000


@pytest.mark.parametrize("decoder", ["resize", "transpose", "pixelshuffle"])
def test_each_decoder_round_trips(decoder: str, tmp_path: Path) -> None:
    vae = make_vae(decoder=decoder).eval()
    vae.save_pretrained(tmp_path)
    again = tv.TransferVAE.from_pretrained(tmp_path, backbone=shared_backbone("vgg19"))
    assert torch.equal(again.sample(2, generator=seeded(0)), vae.sample(2, generator=seeded(0)))


def test_a_model_in_channels_last_is_saved(tmp_path: Path) -> None:
    vae = make_vae().eval()
    expected = vae.sample(2, generator=seeded(0))
    vae.decoder.to(memory_format=torch.channels_last)
    vae.save_pretrained(tmp_path)
    again = tv.TransferVAE.from_pretrained(tmp_path, backbone=shared_backbone("vgg19"))
    assert torch.equal(again.sample(2, generator=seeded(0)), expected)


def test_saving_again_replaces_the_model(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_vae(seed=seed).save_pretrained(tmp_path)
    again = tv.TransferVAE.from_pretrained(tmp_path, backbone=shared_backbone("vgg19"))
    assert all_equal(outputs(again, random_images()), outputs(make_vae(seed=1).eval(), random_images()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_saved_models_are_equal_byte_for_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_vae().save_pretrained(tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_cast_model_still_fits_its_backbone_when_loaded(tmp_path: Path) -> None:
    vae = tv.build_vae(make_backbone("vgg19"), image_size=32, latent_dim=3, decoder=tv.Spec("resize", width=8)).to(
        torch.bfloat16
    )
    vae.save_pretrained(tmp_path)
    again = tv.TransferVAE.from_pretrained(tmp_path)
    assert again.backbone.fingerprint == vae.backbone.fingerprint


def test_another_backbone_is_refused(saved: Path) -> None:
    other_node = tv.create_backbone("vgg19", node="block1_pool", weights=None)
    for other in (other_node, shared_backbone("resnet"), reweighted()):
        with pytest.raises(FingerprintMismatchError, match=r"vgg19 at block2_pool.*weights=PATH"):
            tv.TransferVAE.from_pretrained(saved, backbone=other)


def reweighted() -> tv.FrozenBackbone:
    backbone = make_backbone("vgg19")
    with torch.no_grad():
        next(backbone.network.parameters())[0, 0, 0, 0] += 1e-3
    return backbone


def test_other_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    torch.save(reweighted().network.state_dict(), tmp_path / "other.pth")
    with pytest.raises(FingerprintMismatchError):
        tv.TransferVAE.from_pretrained(saved, weights=tmp_path / "other.pth")


def test_the_same_weights_from_a_file_are_accepted(saved: Path, tmp_path: Path) -> None:
    torch.save(make_backbone("vgg19").network.state_dict(), tmp_path / "same.pth")
    again = tv.TransferVAE.from_pretrained(saved, weights=tmp_path / "same.pth")
    assert all_equal(outputs(again, random_images()), outputs(make_vae().eval(), random_images()))


def test_weights_that_are_gone_are_named(tmp_path: Path) -> None:
    weights = tmp_path / "gone.pth"
    torch.save(make_backbone("vgg19").network.state_dict(), weights)
    backbone = tv.create_backbone("vgg19", node="block2_pool", weights=weights)
    tv.build_vae(backbone, image_size=32, latent_dim=3, decoder=tv.Spec("resize", width=8)).save_pretrained(
        tmp_path / "model"
    )
    weights.unlink()
    with pytest.raises((CheckpointError, WeightsUnavailableError), match=r"gone\.pth"):
        tv.TransferVAE.from_pretrained(tmp_path / "model")


def copy_of(saved: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(file: str, saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = copy_of(saved, tmp_path)
    content = (saved / file).read_bytes()
    (folder / file).write_bytes(content[: data.draw(st.integers(0, len(content.rstrip()) - 1))])
    with pytest.raises(CheckpointError):
        tv.TransferVAE.from_pretrained(folder, backbone=shared_backbone("vgg19"))


def test_a_foreign_safetensors_file_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = copy_of(saved, tmp_path)
    save_file(make_vae().trainable_state(), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="not written by"):
        tv.TransferVAE.from_pretrained(folder)


def config_paths(values: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    own = [path] if path else []
    nested = values.items() if isinstance(values, dict) else ()
    return own + [inner for key, value in nested for inner in config_paths(value, (*path, key))]


def change(config: Any, path: tuple[str, ...], value: object) -> None:
    for key in path[:-1]:
        config = config[key]
    if value is None:
        del config[path[-1]]
    else:
        config[path[-1]] = value


def test_a_config_without_any_one_of_its_keys_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = copy_of(saved, tmp_path)
    original = (saved / "config.json").read_text()
    optional = {
        ("decoder", "width"),
        ("head", "latent_dim"),
        ("prior", "temperature"),
        ("head", "tau"),
        ("head", "law"),
    }
    for path in set(config_paths(json.loads(original))) - optional:
        config = json.loads(original)
        change(config, path, None)
        save_config(folder, config)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            tv.TransferVAE.from_pretrained(folder, backbone=shared_backbone("vgg19"))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("garbage", [17, "garbage", [], {"a": 1}, [1, "b", None], -4, 1.5])
def test_a_config_with_garbage_anywhere_is_refused(saved: Path, tmp_path: Path, garbage: object) -> None:
    folder = copy_of(saved, tmp_path)
    original = (saved / "config.json").read_text()
    for path in config_paths(json.loads(original)):
        config = json.loads(original)
        change(config, path, garbage)
        if (path[0] == "backbone" and len(path) > 1) or path in {("prior", "temperature"), ("head", "tau")}:
            continue  # any number will do
        save_config(folder, config)
        with pytest.raises(CheckpointError):
            tv.TransferVAE.from_pretrained(folder, backbone=shared_backbone("vgg19"))


def test_missing_and_wrong_tensors_are_named(saved: Path, tmp_path: Path) -> None:
    folder = copy_of(saved, tmp_path)
    vae = tv.build_vae(shared_backbone("vgg19"), image_size=32, latent_dim=6, decoder=tv.Spec("resize", width=16))
    vae.save_pretrained(tmp_path / "other")
    save_state(folder, read_tensors(tmp_path / "other" / "model.safetensors").tensors)
    with pytest.raises(CheckpointError, match="5 differ, first "):
        tv.TransferVAE.from_pretrained(folder, backbone=shared_backbone("vgg19"))


def test_loading_a_state_is_all_or_nothing() -> None:
    vae = make_vae(seed=0)
    before = {name: value.clone() for name, value in vae.trainable_state().items()}
    state = make_vae(seed=1).trainable_state()
    for misfit in (
        {name: value for name, value in state.items() if name != "head.mean.bias"},
        state | {"head.more": torch.zeros(1)},
        state | {"head.mean.bias": torch.zeros(6)},
    ):
        with pytest.raises(CheckpointError, match=r"1 differ, first head\.(mean\.bias|more)"):
            vae.load_trainable_state(misfit)
        assert all(torch.equal(value, before[name]) for name, value in vae.trainable_state().items())


class OwnHead(nn.Module):
    """A head that no table knows."""

    def __init__(self, dims: int = 5) -> None:
        super().__init__()
        self.mean = nn.LazyLinear(dims)

    def latent_shape_for(self, _: Sequence[int]) -> tuple[int, ...]:
        return (5,)

    def forward(self, features: Tensor) -> tv.DiagonalGaussian:
        mean = self.mean(features.flatten(1))
        return tv.DiagonalGaussian(mean, torch.zeros_like(mean))


def test_a_part_of_ones_own_is_saved_and_loaded_when_it_is_given_again(tmp_path: Path) -> None:
    vae = tv.TransferVAE(shared_backbone("vgg19"), OwnHead(), tv.resize_decoder((5,), 32, width=8)).eval()
    expected = vae(random_images()).reconstruction
    vae.save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"OwnHead, a part of your own; give it with from_pretrained\(folder, head="
    ):
        tv.TransferVAE.from_pretrained(tmp_path, backbone=shared_backbone("vgg19"))
    again = OwnHead()
    again(shared_backbone("vgg19")(random_images()))  # lazy layers take their shape from their first input
    loaded = tv.TransferVAE.from_pretrained(tmp_path, backbone=shared_backbone("vgg19"), head=again)
    assert torch.equal(loaded(random_images()).reconstruction, expected)


def test_a_part_without_values_yet_is_not_saved(tmp_path: Path) -> None:
    vae = tv.TransferVAE(shared_backbone("vgg19"), OwnHead(), tv.resize_decoder((5,), 32, width=8))
    with pytest.raises(CheckpointError, match="no tensor with values yet"):
        vae.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_subclass_of_a_known_part_is_a_part_of_ones_own(tmp_path: Path) -> None:
    class Wider(tv.GaussianHead):
        pass

    backbone = shared_backbone("vgg19")
    vae = tv.TransferVAE(
        backbone, Wider(backbone.feature_shape(32), latent_dim=5), tv.resize_decoder((5,), 32, width=8)
    )
    vae.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="Wider"):
        tv.TransferVAE.from_pretrained(tmp_path, backbone=backbone)


def test_options_of_parts_are_reached_and_saved(tmp_path: Path) -> None:
    vae = tv.build_vae(
        shared_backbone("vit"),
        image_size=32,
        head=tv.Spec("deterministic", tau=0.8),
        decoder={"name": "vit", "depth": 1, "width": 16},
        prior=tv.Spec("scaled_normal", temperature=0.5),
    )
    vae.save_pretrained(tmp_path)
    again: Any = tv.TransferVAE.from_pretrained(tmp_path, backbone=shared_backbone("vit"))
    assert (again.head.tau, len(again.decoder.blocks), again.prior.temperature) == (0.8, 1, 0.5)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": tv.Spec("gaussian", latent_dimm=3)}, "Did you mean 'latent_dim'"),
        ({"head": {"name": "gaussian", "latent_dim": "many"}}, "latent_dim of head 'gaussian' must be a whole number"),
        ({"decoder": tv.Spec("vit", width="wide")}, "width of decoder 'vit' must be a whole number or none"),
        ({"decoder": {"width": 8}}, "decoder must be a name"),
        ({"prior": "standard"}, "Did you mean 'standard_normal'"),
        ({"backbone": tv.Spec("vgg19", nodes="x")}, "Did you mean 'node'"),
        ({"backbone": tv.Spec("vgg19", norm="yes")}, "norm of backbone 'vgg19' must be true or false"),
    ],
)
def test_specs_that_cannot_be_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(tv.errors.TransferVAEError, match=message):
        tv.build_vae(**{"backbone": shared_backbone("vgg19"), "image_size": 32, **arguments})


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_model_folder_without_one_of_its_files_is_refused(saved: Path, tmp_path: Path, missing: str) -> None:
    folder = copy_of(saved, tmp_path)
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=f"There is no {missing}"):
        tv.TransferVAE.from_pretrained(folder, backbone=shared_backbone("vgg19"))


def test_a_missing_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no model folder"):
        tv.TransferVAE.from_pretrained(tmp_path / "nowhere")


def test_a_foreign_config_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = copy_of(saved, tmp_path)
    (folder / "config.json").write_text(json.dumps({"transfervae_format": 999}))
    with pytest.raises(CheckpointError, match="not written by this version"):
        tv.TransferVAE.from_pretrained(folder)


@each_head
def test_each_head_trains_saves_and_loads(head: str, tmp_path: Path) -> None:
    vae, images = make_vae(head=head, latent_dim=None), random_images()
    tv.losses.elbo(vae(images), images, free_bits=0.1).total.backward()
    assert all(parameter.grad is not None for parameter in vae.trainable_parameters())
    vae.fit_scaling([images])
    vae.eval().save_pretrained(tmp_path)
    again = tv.TransferVAE.from_pretrained(tmp_path, backbone=shared_backbone("vgg19"))
    for scaled in (False, True):
        first, second = (model.encode(images, scaled=scaled) for model in (vae, again))
        assert torch.equal(second.mean, first.mean)
        assert torch.equal(second.variance, first.variance)
        assert torch.equal(again.decode(second.mode(), scaled=scaled), vae.decode(first.mode(), scaled=scaled))
    assert torch.equal(again.sample(2, generator=seeded(3)), vae.sample(2, generator=seeded(3)))


@each_head
def test_each_head_interpolates_and_reconstructs(head: str) -> None:
    vae, images = make_vae(head=head, latent_dim=None).eval(), random_images()
    path = vae.interpolate(images, images.flip(0), steps=3)
    assert_close(path[:, 0], vae.reconstruct(images), rtol=1e-4, atol=1e-5)


@each_head
@pytest.mark.parametrize("per", ["channel", "position"])
def test_scaled_latents_have_mean_zero_and_variance_one_over_the_images(head: str, per: str) -> None:
    vae, images = make_vae(head=head, latent_dim=None), random_images(count=12)
    vae.fit_scaling(images.split(5), per=per, convention="diffusers")
    posterior = vae.encode(images, scaled=True)
    mean, variance = posterior.mean.double(), posterior.variance.double()
    dims = [0, *(range(2, mean.ndim) if per == "channel" else ())]
    assert vae.scaling is not None
    alive = vae.scaling.std.view_as(mean.mean(dim=dims)) > 1e-2
    total = mean.var(dim=dims, correction=0) + variance.mean(dim=dims)
    assert_close(mean.mean(dim=dims)[alive], torch.zeros_like(total)[alive], rtol=0, atol=1e-3)
    assert_close(total[alive], torch.ones_like(total)[alive], rtol=1e-2, atol=0)
    assert alive.any()


@each_head
def test_scaled_latents_are_decoded_to_what_unscaled_ones_are(head: str) -> None:
    vae, images = make_vae(head=head, latent_dim=None).eval(), random_images()
    vae.fit_scaling([images])
    scaled = vae.encode(images, scaled=True).mode()
    assert not torch.allclose(scaled, vae.encode(images).mode())
    assert_close(vae.decode(scaled, scaled=True), vae.reconstruct(images), rtol=1e-4, atol=1e-4)
    drawn = vae.encode(images, scaled=True).sample(generator=seeded(1))
    expected = vae.decode(vae.encode(images).sample(generator=seeded(1)))
    assert_close(vae.decode(drawn, scaled=True), expected, rtol=1e-4, atol=1e-4)


def test_scaled_latents_of_a_model_without_scaling_are_refused() -> None:
    vae = make_vae()
    features = vae.backbone(random_images())
    for ask in (
        lambda: vae.encode(random_images(), scaled=True),
        lambda: vae.encode_features(features, scaled=True),
        lambda: vae.decode(torch.zeros(2, 5), scaled=True),
    ):
        with pytest.raises(InvalidOptionError, match=r"fit_scaling\(batches\)"):
            ask()


def test_fitting_a_scaling_refuses_what_cannot_be_before_it_looks_at_images() -> None:
    vae, unread = make_vae(), iter([random_images()])
    with pytest.raises(UnknownNameError, match="Did you mean 'channel'"):
        vae.fit_scaling(unread, per="chanel")
    with pytest.raises(UnknownNameError, match="rae, diffusers"):
        vae.fit_scaling(unread, convention="other")
    assert next(unread) is not None
    with pytest.raises(InvalidOptionError, match="no latents"):
        vae.fit_scaling([])
    assert vae.scaling is None


def test_fitting_again_replaces_the_scaling() -> None:
    vae, images = make_vae(head="deterministic", latent_dim=None), random_images(count=8)
    for batch in (images[:4], images):
        vae.fit_scaling([batch])
    alone = make_vae(head="deterministic", latent_dim=None)
    alone.fit_scaling([images])
    assert vae.scaling is not None
    assert alone.scaling is not None
    assert torch.equal(vae.scaling.std, alone.scaling.std)


def test_a_scaling_is_part_of_the_trainable_state_and_not_trained() -> None:
    vae = make_vae()
    parameters = [id(parameter) for parameter in vae.trainable_parameters()]
    plain = vae.trainable_state().keys()
    vae.fit_scaling([random_images()])
    assert vae.trainable_state().keys() - plain == {"scaling.mean", "scaling.std"}
    assert [id(parameter) for parameter in vae.trainable_parameters()] == parameters
    other = make_vae(seed=1)
    with pytest.raises(CheckpointError, match=r"2 differ, first scaling\.mean"):
        other.load_trainable_state(vae.trainable_state())
    other.fit_scaling([random_images(seed=4)])
    other.load_trainable_state(vae.trainable_state())
    assert torch.equal(other.encode(random_images(), scaled=True).mean, vae.encode(random_images(), scaled=True).mean)


def test_the_prior_of_a_gaussian_head_is_unscaled_and_draws_for_points_are_scaled() -> None:
    for head, scaled in (("gaussian", False), ("spatial", False), ("pooled", False), ("deterministic", True)):
        vae = make_vae(head=head, latent_dim=None).eval()
        draws = torch.randn(3, *vae.latent_shape, generator=seeded(2))
        assert torch.equal(vae.sample(3, generator=seeded(2)), vae.decode(draws))
        vae.fit_scaling([random_images(count=4)])
        assert torch.equal(vae.sample(3, generator=seeded(2)), vae.decode(draws, scaled=scaled))


def test_points_get_noise_in_training_only() -> None:
    backbone, images = shared_backbone("vgg19"), random_images()
    shape = backbone.feature_shape(32)
    vae = tv.TransferVAE(backbone, tv.DeterministicHead((1, 1, 1), tau=0.5), tv.resize_decoder(shape, 32, width=8))
    assert torch.equal(vae.eval()(images).latent, backbone(images))
    noisy = vae.train()(images, generator=seeded(0)).latent
    assert not torch.equal(noisy, backbone(images))
    assert torch.equal(noisy, vae(images, generator=seeded(0)).latent)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("garbage", [17, "garbage", [], {"shape": [6]}, {"shape": "5"}, {"a": 1}, {"shape": [5, 1, 1]}])
def test_a_garbled_scaling_is_refused(garbage: object, tmp_path: Path) -> None:
    vae = make_vae()
    vae.fit_scaling([random_images()])
    vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["scaling"] == {"shape": [5]}
    save_config(tmp_path, config | {"scaling": garbage})
    with pytest.raises(CheckpointError):
        tv.TransferVAE.from_pretrained(tmp_path, backbone=shared_backbone("vgg19"))


def test_a_scaling_for_other_latents_is_refused() -> None:
    vae = make_vae()
    with pytest.raises(ShapeError, match=r"for latents \(6,\), the model has \(5,\)"):
        tv.TransferVAE(vae.backbone, vae.head, vae.decoder, scaling=tv.LatentScaling.identity((6,)))


def test_a_folder_without_a_word_on_scaling_is_read(saved: Path) -> None:
    assert "scaling" not in json.loads((saved / "config.json").read_text())
    assert tv.TransferVAE.from_pretrained(saved, backbone=shared_backbone("vgg19")).scaling is None


def test_latent_dim_is_the_heads_default_if_left_out() -> None:
    shapes = {head: make_vae(head=head, latent_dim=None).latent_shape for head in HEADS}
    assert shapes == {"gaussian": (128,), "spatial": (16, 8, 8), "pooled": (128,), "deterministic": (128, 8, 8)}
    with pytest.raises(UnknownOptionError, match="latent_dim"):
        make_vae(head="deterministic", latent_dim=4)
    with pytest.raises(UnknownNameError, match="Did you mean 'spatial'"):
        make_vae(head="spacial")


def test_each_kind_compiles_as_one_graph_with_equal_values_and_all_gradients() -> None:
    run = run_warm("-m", "tests.compile_all", environment=os.environ, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    report: dict[str, float | str] = json.loads(run.stdout)
    failed = {name: value for name, value in report.items() if not isinstance(value, int | float) or value > 1e-4}
    assert report.keys() >= KINDS.keys() | {f"head {head}" for head in HEADS if head != "gaussian"}
    assert failed == {}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_function_transforms_agree_with_autograd_and_batches(kind: str) -> None:
    vae, images = make_vae(kind).eval(), random_images(kind)
    per_image = torch.func.vmap(lambda image: vae.encode(image[None]).mean[0])(images)
    assert_close(per_image, vae.encode(images).mean, rtol=1e-4, atol=1e-5)
    gradient = torch.func.grad(lambda given: vae.encode(given).kl().sum())(images)
    leaf = images.clone().requires_grad_()
    vae.encode(leaf).kl().sum().backward()
    assert_close(gradient, leaf.grad)
    with pytest.raises(InvalidImageError):
        torch.func.grad(lambda given: vae.encode(given).kl().sum())(255 * images)


@pytest.mark.usefixtures("without_shape_checks")
def test_gradients_are_the_same_when_a_part_is_computed_again() -> None:
    vae, images = make_vae().train(), random_images()

    def gradients(forward: Callable[[Tensor], tv.VAEOutput]) -> list[Tensor]:
        torch.manual_seed(0)
        tv.losses.elbo(forward(images), images).total.backward()
        found = [parameter.grad.clone() for parameter in vae.trainable_parameters() if parameter.grad is not None]
        vae.zero_grad()
        return found

    again = gradients(lambda given: checkpoint(vae, given, use_reentrant=False))
    for one, other in zip(gradients(vae), again, strict=True):
        assert_close(one, other)
