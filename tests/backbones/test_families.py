import copy
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

import transfervae as tv
from tests.families import FAMILIES
from tests.warm import run_warm
from transfervae.backbones import describe_backbone
from transfervae.errors import WeightsMismatchError

ROOT = Path(__file__).parents[2]

LOADED = (
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
    "test_vit",
    "test_byobnet",
    "test_coatnet",
    "test_mambaout",
    "test_nfnet",
    "regnetx_002",
    "lcnet_035",
    "starnet_s050",
    "edgenext_xx_small",
    "levit_128s",
    "pvt_v2_b0",
)
"""Networks whose whole weights are saved and loaded: classifiers of all kinds, heads with layers of their own."""

COMPILED = (
    "module",
    "blocks",
    "test_resnet",
    "test_vit",
)
"""What is compiled in the tests: tracing all families takes 1 to 18 seconds each, 8 minutes together."""

NOT_COMPILED: Mapping[str, str] = MappingProxyType({"sequencer2d_s": "Dynamo does not support RNN, GRU, or LSTM"})
"""All families that cannot be traced as one graph, with the reason that torch gives."""


class Family(NamedTuple):
    """A network as a backbone, in a model that is built around it."""

    name: str
    size: tuple[int, int]
    vae: tv.TransferVAE
    images: Tensor


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    """One network at a time, made once for all tests of it."""
    name: str = request.param
    size = FAMILIES[name]
    torch.manual_seed(0)
    vae = tv.build_vae(
        tv.Spec(f"timm:{name}", weights=None), image_size=size, latent_dim=3, decoder=tv.Spec("resize", width=8)
    )
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    yield Family(name, size, vae, images)
    del vae


def test_features_are_maps_of_the_declared_shape_and_items_do_not_mix(family: Family) -> None:
    backbone = family.vae.backbone
    features = backbone(family.images)
    assert features.shape == (2, *backbone.feature_shape(family.size))
    assert features.isfinite().all()
    assert not torch.equal(features[0], features[1])
    scale = features.abs().max().item()
    torch.testing.assert_close(backbone(family.images[1:]), features[1:], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("family", tuple(FAMILIES)[::3], indirect=True, scope="module")
def test_nodes_are_those_described_and_several_are_read_in_one_pass(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = describe_backbone(f"timm:{family.name}", image_size=family.size)
    last = len(described.nodes) - 1
    nodes = sorted({0, last // 2, last})
    backbone = tv.create_backbone(f"timm:{family.name}", node=nodes, image_size=family.size, weights=None)
    network: Any = backbone.network.network
    calls: list[list[Tensor]] = []
    original = network.forward_intermediates

    def count(*arguments: Any, **options: Any) -> list[Tensor]:
        calls.append(original(*arguments, **options))
        return calls[-1]

    monkeypatch.setattr(network, "forward_intermediates", count)
    images = backbone.normalise(family.images)
    fused = backbone.network(images)
    ((*maps,),) = calls
    assert [(*features.shape[1:],) for features in maps] == [
        (described.nodes[node].channels, *described.nodes[node].grid) for node in nodes
    ]
    assert (described.default_node, last) == (family.vae.backbone.provenance.node,) * 2
    assert backbone.feature_shape(family.size) == tuple(fused.shape[1:])
    first, final = described.nodes[0], family.vae.backbone(family.images)
    assert fused.shape[1:] == (sum(features.shape[1] for features in maps), *first.grid)
    expected = interpolate(final, size=first.grid, mode="bilinear", antialias=True)
    torch.testing.assert_close(fused[:, -final.shape[1] :], expected, rtol=1e-3, atol=1e-4 * final.abs().max().item())


def test_a_training_step_changes_head_and_decoder_alone_and_the_model_is_read_as_it_was_saved(
    family: Family, tmp_path: Path
) -> None:
    vae = family.vae.train()
    before = copy.deepcopy(vae.backbone.state_dict())
    assert not any(module.training for module in vae.backbone.network.modules())
    assert not any(parameter.requires_grad for parameter in vae.backbone.parameters())
    optimiser = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=0.1)
    tv.losses.elbo(vae(family.images), family.images).total.backward()
    gradients = {name: p.grad for name, p in vae.named_parameters() if not name.startswith("backbone.")}
    assert {name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()} == set()
    optimiser.step()
    after = vae.backbone.state_dict()
    assert before.keys() == after.keys()
    assert {name for name, value in after.items() if not torch.equal(value, before[name])} == set()
    if family.name in LOADED:  # creating all of them once more takes a quarter of a minute
        vae.eval().save_pretrained(tmp_path)
        again = tv.TransferVAE.from_pretrained(tmp_path)
        assert torch.equal(again.reconstruct(family.images), vae.reconstruct(family.images))


def test_the_families_differ_and_are_many() -> None:
    modules = {timm.model_entrypoint(name).__module__ for name in FAMILIES}
    assert len(modules) == len(FAMILIES) >= 60


@pytest.fixture(scope="module", params=LOADED)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    """A whole network, its classifier included, and a file of its weights with statistics that are not the initial."""
    name: str = request.param
    torch.manual_seed(1)
    network: Any = timm.create_model(name).eval()
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    return name, network, path


def test_a_whole_network_s_file_gives_timm_s_own_features(whole: tuple[str, Any, Path]) -> None:
    name, network, path = whole
    backbone = tv.create_backbone(f"timm:{name}", weights=path)
    images = torch.rand(1, 3, *network.pretrained_cfg["input_size"][1:], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = network.forward_intermediates(backbone.normalise(images), intermediates_only=True)[-1]
    scale = expected.abs().max().item()
    torch.testing.assert_close(backbone(images), expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("spoil", ["missing", "wrong"])
def test_a_file_with_a_tensor_that_does_not_fit_is_refused_by_its_name(
    whole: tuple[str, Any, Path], tmp_path: Path, spoil: str
) -> None:
    name, network, _ = whole
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    key = next(key for key, value in state.items() if value.ndim > 1)
    if spoil == "missing":
        del state[key]
    else:
        state[key] = torch.zeros(1, 2, 3)
    save_file(state, tmp_path / "spoilt.safetensors")
    with pytest.raises(WeightsMismatchError, match=f"do not fit timm:{name}: .*{key}"):
        tv.create_backbone(f"timm:{name}", weights=tmp_path / "spoilt.safetensors")


def test_backbone_head_and_objective_compile_as_one_graph_but_for_known_networks() -> None:
    process = run_warm("-m", "tests.compile_families", *COMPILED, *NOT_COMPILED, environment=os.environ, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    report: dict[str, float | str] = json.loads(process.stdout)
    errors = {name: value for name, value in report.items() if isinstance(value, str)}
    assert {name: value for name, value in errors.items() if name not in NOT_COMPILED} == {}
    assert errors.keys() == NOT_COMPILED.keys()
    assert all(reason in errors[name] for name, reason in NOT_COMPILED.items())
    assert max(value for value in report.values() if not isinstance(value, str)) <= 1e-4
    assert report.keys() == {*COMPILED, *NOT_COMPILED}
