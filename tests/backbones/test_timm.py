from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.samples import random_images
from transfervae import Spec, build_vae, create_backbone
from transfervae.backbones._timm import _tensor_names, is_timm_name
from transfervae.backbones.feature_spec import FeatureSpec
from transfervae.errors import UnknownNameError, WeightsMismatchError, WeightsUnavailableError

NETWORKS = {"test_resnet": 64, "test_efficientnet": 64, "test_convnext": 64, "test_vit": 32}
SWIN = "swin_tiny_patch4_window7_224"
each_network = pytest.mark.parametrize("name", NETWORKS)


def normalised(images: Tensor, config: Any) -> Tensor:
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (images - mean) / std


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Whole networks' weights, classifiers included, with statistics that are not the initial ones."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {}
    for name in NETWORKS:
        torch.manual_seed(1)
        state = timm.create_model(name).state_dict()
        for key, value in state.items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2)
        paths[name] = folder / f"{name}.pth"
        torch.save(state, paths[name])
        save_file(state, paths[name].with_suffix(".safetensors"))
    return paths


@each_network
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_stage_equals_timm_s_own_with_weights_from_a_file(
    name: str, suffix: str, weights: dict[str, Path]
) -> None:
    whole: Any = timm.create_model(name)
    whole.load_state_dict(torch.load(weights[name], weights_only=True))
    images = torch.rand(2, 3, NETWORKS[name], NETWORKS[name])
    with torch.no_grad():
        stages = whole.eval().forward_intermediates(normalised(images, whole.pretrained_cfg), intermediates_only=True)
    for index, expected in enumerate(stages):
        backbone = create_backbone(f"timm:{name}", node=index, weights=weights[name].with_suffix(suffix))
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-5)


@each_network
def test_the_last_stage_is_the_default_and_negative_indices_count_from_it(name: str) -> None:
    default = create_backbone(f"timm:{name}", weights=None)
    last = create_backbone(f"timm:{name}", node=-1, weights=None)
    index = default.provenance.node
    assert isinstance(index, int)
    assert index >= 0
    assert (
        default.fingerprint == last.fingerprint == create_backbone(f"timm:{name}", node=index, weights=None).fingerprint
    )
    assert create_backbone(f"timm:{name}", node=str(index), weights=None).provenance.node == index


@each_network
def test_layers_past_the_node_are_not_kept(name: str) -> None:
    early, late = (create_backbone(f"timm:{name}", node=node, weights=None) for node in (0, -1))
    assert len(early.network.state_dict()) < len(late.network.state_dict())
    assert not any("head" in key or "classifier" in key or "fc" in key.split(".") for key in late.network.state_dict())


@each_network
def test_normalisation_is_the_network_s_own(name: str) -> None:
    backbone = create_backbone(f"timm:{name}", weights=None)
    config: Any = timm.get_pretrained_cfg(name)
    torch.testing.assert_close(backbone.mean.flatten(), torch.tensor(config.mean))
    torch.testing.assert_close(backbone.std.flatten(), torch.tensor(config.std))
    assert backbone.provenance.native_size == tuple(config.input_size[1:])


def test_a_vit_gives_a_map_without_prefix_tokens_at_sizes_of_any_ratio() -> None:
    backbone = create_backbone("timm:test_vit", weights=None)
    assert backbone(torch.rand(2, 3, 32, 64)).shape == (2, 64, 2, 4)
    assert backbone(torch.rand(1, 3, 160, 160)).shape == (1, 64, 10, 10)


def test_a_channels_last_network_gives_channels_first() -> None:
    backbone = create_backbone(f"timm:{SWIN}", node=0, weights=None)
    oracle: Any = timm.create_model(SWIN, features_only=True, out_indices=(0,)).eval()
    assert oracle.output_fmt == "NHWC"
    state = {name.removeprefix("network."): tensor for name, tensor in backbone.network.state_dict().items()}
    oracle.load_state_dict({name: state[name.replace("layers_0", "layers.0", 1)] for name in oracle.state_dict()})
    images = random_images(count=1).repeat(1, 1, 7, 7)
    with torch.no_grad():
        expected = oracle(backbone.normalise(images))[0].permute(0, 3, 1, 2)
    assert backbone(images).shape == (1, 96, 56, 56)
    torch.testing.assert_close(backbone(images), expected)


def test_a_network_that_chooses_its_own_way_to_give_features_serves_too() -> None:
    backbone = create_backbone("timm:hardcorenas_a", node=1, weights=None)
    assert backbone.feature_shape(64) == (backbone.out_channels, 16, 16)


def test_a_model_is_built_on_any_of_them() -> None:
    for name, size in NETWORKS.items():
        vae = build_vae(
            Spec(f"timm:{name}", weights=None), image_size=size, latent_dim=3, decoder=Spec("resize", width=8)
        )
        assert vae(torch.rand(2, 3, size, size)).reconstruction.shape == (2, 3, size, size)


@pytest.mark.parametrize("node", [9, -9, "9"])
def test_a_stage_that_is_not_there_is_refused(node: str | int) -> None:
    with pytest.raises(UnknownNameError, match=r"node of timm:test_vit.*Known: 0, 1, 2, 3, 4, 5\..*-6 to -1"):
        create_backbone("timm:test_vit", node=node, weights=None)


def test_unknown_names_and_tags_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet18'"):
        create_backbone("timm:resnet_18", weights=None)
    with pytest.raises(UnknownNameError, match=r"tag of timm:test_resnet 'r160_in1'.*Did you mean 'r160_in1k'"):
        create_backbone("timm:test_resnet.r160_in1", weights=None)


def test_names_are_known_with_and_without_a_tag() -> None:
    assert is_timm_name("test_resnet")
    assert is_timm_name("test_resnet.r160_in1k")
    assert not is_timm_name("vgg20")


def test_weights_of_another_network_are_refused_and_misfits_named(weights: dict[str, Path]) -> None:
    with pytest.raises(WeightsMismatchError, match=r"timm:test_resnet: .*is missing; .*is missing; .*, and \d+ more"):
        create_backbone("timm:test_resnet", weights=weights["test_vit"])


def test_a_wrong_shape_is_named(weights: dict[str, Path], tmp_path: Path) -> None:
    state = torch.load(weights["test_resnet"], weights_only=True)
    state["layer1.0.conv1.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(WeightsMismatchError, match=r"layer1\.0\.conv1\.weight"):
        create_backbone("timm:test_resnet", weights=tmp_path / "wrong.pth")


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_wrong_name_is_named(weights: dict[str, Path], tmp_path: Path, change: str) -> None:
    state = torch.load(weights["test_resnet"], weights_only=True)
    value = state.pop("layer1.0.conv1.weight")
    name = "layer1.0.conv1.weight"
    if change == "unexpected":
        state |= {name: value, "layer1.7.weight": value}
        name = "layer1.7.weight"
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(WeightsMismatchError, match=f"{name} is"):
        create_backbone("timm:test_resnet", weights=tmp_path / "wrong.pth")


def test_the_fingerprint_follows_the_weights_and_the_stage(weights: dict[str, Path]) -> None:
    name = "timm:test_resnet"
    fingerprints = {
        create_backbone(name, weights=None).fingerprint,
        create_backbone(name, weights=weights["test_resnet"]).fingerprint,
        create_backbone(name, node=0, weights=weights["test_resnet"]).fingerprint,
    }
    assert len(fingerprints) == 3
    again = create_backbone(name, weights=weights["test_resnet"].with_suffix(".safetensors"))
    assert again.fingerprint in fingerprints


def test_weights_that_nobody_publishes_are_an_error_that_names_the_way_out() -> None:
    name = next(name for name in timm.list_models("vit_*") if not has_weights(name))
    with pytest.raises(WeightsUnavailableError, match=r"publishes no weights.*weights=PATH"):
        create_backbone(f"timm:{name}", weights="default")


def has_weights(name: str) -> bool:
    config = timm.get_pretrained_cfg(name)
    return bool(config and (config.hf_hub_id or config.url))


def test_the_license_is_that_of_the_default_weights_alone(weights: dict[str, Path]) -> None:
    assert create_backbone("timm:test_resnet", weights=weights["test_resnet"]).license is None
    assert create_backbone("timm:test_resnet", weights=None).license is None


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_weights_of_a_file_cost_one_network_and_one_without_memory(
    name: str, weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    create = timm.create_model

    def count(*given: Any, **options: Any) -> Any:
        network = create(*given, **options)
        made.append(next(network.parameters()).device.type)
        return network

    monkeypatch.setattr(timm, "create_model", count)
    create_backbone(f"timm:{name}", weights=weights[name])
    assert sorted(made) == ["cpu", "meta"]


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "swin_tiny_patch4_window7_224", "qwen3_vit_306m_enc"])
def test_what_is_left_without_a_classifier_is_what_timm_creates_without_one(name: str) -> None:
    whole, trunk = _tensor_names(name, FeatureSpec((-1,)), name)
    with torch.device("meta"):
        networks = timm.create_model(name), timm.create_model(name, num_classes=0)
    assert list(whole) == list(networks[0].state_dict())
    assert trunk == networks[1].state_dict().keys()
