from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import transfervae as tv
from tests.runs import Small
from tests.samples import make_backbone, make_vae, random_images
from transfervae import DiagonalGaussian, FrozenBackbone, Objective, Spec, VAEOutput
from transfervae.errors import InvalidOptionError, UnknownNameError
from transfervae.objectives import FeatureError, Perceptual
from transfervae.objectives.term import EncodedOutput
from transfervae.training._checkpoint_io import SafetensorsIO


def output_of(reconstruction: Tensor) -> VAEOutput:
    zeros = torch.zeros(len(reconstruction), 2)
    return VAEOutput(reconstruction, DiagonalGaussian(zeros, zeros), zeros)


def test_features_are_compared_node_by_node_as_the_formula_says() -> None:
    images, other = random_images("resnet", count=3), random_images("resnet", count=3, seed=1)
    term = FeatureError(extractor="timm:test_resnet", nodes=[0, 2], weights=None)
    expected = torch.zeros(3)
    for node in (0, 2):
        network = tv.create_backbone("timm:test_resnet", node=node, weights=None)
        one, two = (network(batch).double() for batch in (images, other))
        one, two = (values / values.square().mean(dim=1, keepdim=True).sqrt() for values in (one, two))
        expected += (one - two).square().mean(dim=(1, 2, 3)).float() / 2
    torch.testing.assert_close(term(output_of(other), images), expected, rtol=1e-4, atol=1e-6)
    assert term(output_of(images), images).abs().max() == 0


@pytest.mark.parametrize("kind", ["features", "perceptual"])
def test_gradients_reach_the_reconstruction_and_none_the_network(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if kind == "features":
        term: Any = FeatureError()
        term.attach(make_backbone("resnet"))
    else:
        path = tmp_path / "squeeze.pth"
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
        term = Perceptual(network="squeeze", weights=path)
    images = random_images("resnet")
    reconstruction = random_images("resnet", seed=1).requires_grad_()
    term.train()(output_of(reconstruction), images).sum().backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().sum() > 0
    network = term._network.on(torch.device("cpu"))
    assert not any(module.training for module in network.modules() if isinstance(module, nn.Dropout | nn.BatchNorm2d))
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
    assert list(term.parameters()) == []
    assert term.state_dict() == {}


def test_a_network_in_memory_is_compared_where_it_is_read() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2, padding=1))
    backbone = FrozenBackbone.from_module(module, ["1", "2"], mean=(0.5,) * 3, std=(0.5,) * 3)
    objective = Objective("l1", "features")
    objective.attach(backbone)
    images = random_images("resnet")
    value = objective(output_of(random_images("resnet", seed=1)), images)
    assert value.raw["features"] > 0
    assert value.weighted["features"] == 0.1 * value.raw["features"]


def test_a_term_without_a_network_says_what_to_do() -> None:
    images = random_images("resnet")
    with pytest.raises(InvalidOptionError, match=r"objective\.attach\(vae\.backbone\)"):
        Objective("features")(output_of(images), images)
    with pytest.raises(UnknownNameError, match="Did you mean 'packaged'"):
        Objective(Spec("features", extractor="pakaged"))


def test_a_run_with_features_has_a_small_checkpoint_and_resumes(tmp_path: Path) -> None:
    part = Small(epochs=1, objective=["l1", "features", "kl"])
    before = part.train(tmp_path / "part").rows
    resumed = replace(part, epochs=2).train(tmp_path / "part", resume=True)
    state = SafetensorsIO().load_checkpoint(tmp_path / "part" / "checkpoints" / "last.safetensors")["state_dict"]
    assert not [name for name in state if name.startswith("objective.")]
    assert len(resumed.rows) == 2
    assert resumed.rows[0]["train/term/features"] == before[0]["train/term/features"]


def test_sharper_pictures_come_of_features_than_of_l1_alone(tmp_path: Path) -> None:
    def distance(objective: Any, out: Path) -> float:
        small = Small(
            faces=48, epochs=5, backbone="packaged", weights="default", node=[0, 1], learning_rate=3e-3, latent_dim=32
        )
        result = small.train(out, objective=objective)
        term = FeatureError(extractor="packaged", nodes=[0, 1, 2])
        images = torch.stack([small.open()[index] for index in range(32)]).float() / 255
        with torch.no_grad():
            return float(term(result.vae(images), images).mean())

    plain = distance("l1,kl", tmp_path / "plain")
    assert distance(["l1", Spec("features", weight=0.3, nodes=[0, 1]), "kl"], tmp_path / "features") < 0.9 * plain


def test_maps_of_one_node_are_its_features() -> None:
    vae = make_vae("resnet")
    images = random_images("resnet")
    (features,) = vae.backbone.maps(images)
    assert torch.equal(features, vae.backbone(images))
    (of_vgg,) = make_backbone("vgg19").maps(random_images())
    assert torch.equal(of_vgg, make_backbone("vgg19")(random_images()))


def test_the_originals_features_come_from_the_cache_where_the_encoder_reads(tmp_path: Path) -> None:
    small = Small(epochs=2, node=[1, 0], objective={"l1": {}, "features": {"nodes": "encoder"}})
    rows = {
        cache: replace(small, cache=cache).train(tmp_path / cache).rows[0]["train/term/features"]
        for cache in ("auto", "off")
    }
    assert (tmp_path / "auto" / "features").exists()
    assert rows["auto"] == pytest.approx(rows["off"], rel=1e-3)  # features are stored in half precision


def test_known_features_are_not_computed_again() -> None:
    backbone = tv.create_backbone("timm:test_resnet", node=[1, 0], weights=None)
    term = FeatureError(nodes="encoder")
    term.attach(backbone)
    images, other = random_images("resnet"), random_images("resnet", seed=1)
    plain = output_of(other)
    known = EncodedOutput(*plain, backbone(images))
    torch.testing.assert_close(term(known, images), term(plain, images), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(term(known, torch.zeros_like(images)), term(plain, images), rtol=1e-4, atol=1e-6)
    with pytest.raises(InvalidOptionError, match="encoder's own network"):
        FeatureError(extractor="packaged", nodes="encoder")
