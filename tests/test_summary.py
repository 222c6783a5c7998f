import pytest
import torch
from torch import nn

from tests.samples import KINDS, make_vae, random_images
from transfervae.summary import PartSummary, summarise

each_kind = pytest.mark.parametrize("kind", KINDS)


def part(parts: list[PartSummary], name: str) -> PartSummary:
    return next(entry for entry in parts if entry.name == name)


@each_kind
def test_parts_add_up_to_the_model_s_parameters(kind: str) -> None:
    vae = make_vae(kind)
    parts = summarise(vae)
    assert sum(entry.trainable for entry in parts) == sum(value.numel() for value in vae.trainable_parameters())
    assert sum(entry.frozen for entry in parts) == sum(value.numel() for value in vae.backbone.parameters())


@each_kind
def test_shapes_are_those_of_the_parts_outputs(kind: str) -> None:
    vae = make_vae(kind)
    parts = summarise(vae)
    assert part(parts, "backbone").output_shape == vae.backbone.feature_shape(KINDS[kind].size)
    assert part(parts, "head").output_shape == (5,)
    assert parts[-1].output_shape == (3, *vae.image_size)


def test_parts_are_named_in_order() -> None:
    names = [entry.name for entry in summarise(make_vae())]
    assert names == ["backbone", "head", "decoder stem", "decoder stage 1", "decoder stage 2", "decoder to rgb"]


def test_operations_are_those_of_the_layers() -> None:
    vae = make_vae()
    parts = summarise(vae)
    last = vae.get_submodule("decoder.to_rgb")
    assert isinstance(last, nn.Conv2d)
    assert part(parts, "decoder to rgb").flops == 2 * 32 * 32 * last.in_channels * 3 * 9
    features = 128 * 8 * 8
    assert part(parts, "head").flops == 2 * 2 * features * 5


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(*, training: bool) -> None:
    vae = make_vae().train(training)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    expected = vae.eval()(random_images()).reconstruction
    vae.train(training)
    first, second = summarise(vae), summarise(vae)
    assert first == second
    assert vae.training == training
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vae.modules())
    assert torch.equal(vae.eval()(random_images()).reconstruction, expected)
