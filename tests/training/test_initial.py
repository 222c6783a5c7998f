from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

import transfervae as tv
from tests.runs import Small
from transfervae.errors import CheckpointError, InvalidOptionError, UnknownNameError
from transfervae.files import read_json, read_tensors
from transfervae.interop import load_diffusers_kl_decoder
from transfervae.training import TrainResult, train
from transfervae.training._initial import load_initial_objective

SMALL = Small(epochs=1, faces=16)
MODEL = {**SMALL.model, "head": tv.Spec("spatial", latent_dim=4), "latent_dim": None}
DISCRIMINATOR = {"discriminator": "patch", "width": 8, "layers": 1, "augment": False}
ADVERSARIAL = {"l1": {}, "adversarial": {"weight": 0.1, **DISCRIMINATOR}}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has trained a discriminator."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    SMALL.train(folder, model=MODEL, objective=ADVERSARIAL)
    return folder


def train_on(source: Path | None, out: Path, model: Any = None, **more: Any) -> TrainResult:
    """Train from a saved run."""
    options: dict[str, Any] = {"epochs": 1, "objective": ADVERSARIAL, "dataset": SMALL.dataset, "engine": SMALL.engine}
    return train(model, out=out, init_from=source, **{**options, **more})


def state(vae: tv.TransferVAE, part: str) -> dict[str, Tensor]:
    """Copies of a part's tensors."""
    return {name: value.clone() for name, value in getattr(vae, part).state_dict().items()}


def test_training_goes_on_from_the_saved_weights(begun: Path, tmp_path: Path) -> None:
    before = tv.TransferVAE.from_pretrained(begun / "model")
    still = {"learning_rate": 1e-12}
    after = train_on(begun, tmp_path / "still", optimizer=still).vae
    for part in ("head", "decoder"):
        torch.testing.assert_close(state(after, part), state(before, part))
    config = read_json(tmp_path / "still" / "config.json")
    assert config["init_from"] == str(begun)
    assert config["decoder"] == read_json(begun / "config.json")["decoder"]


@pytest.mark.parametrize(("frozen", "learning"), [("head", "decoder"), ("decoder", "head")])
def test_a_frozen_part_stays_as_it_is(begun: Path, frozen: str, learning: str, tmp_path: Path) -> None:
    before = tv.TransferVAE.from_pretrained(begun / "model")
    result = train_on(begun, tmp_path / "run", freeze=[frozen])
    kept, changed = state(result.vae, frozen), state(result.vae, learning)
    assert all(torch.equal(value, kept[name]) for name, value in state(before, frozen).items())
    assert not all(torch.equal(value, changed[name]) for name, value in state(before, learning).items())


def test_the_discriminator_is_saved_beside_the_model_and_taken_over(begun: Path) -> None:
    stored = read_tensors(begun / "objective.safetensors").tensors
    objective = tv.Objective.parse(ADVERSARIAL)
    objective.attach(tv.TransferVAE.from_pretrained(begun / "model").backbone)
    assert load_initial_objective(objective, begun)
    own = objective.state_dict()
    assert own.keys() == stored.keys()
    assert all(torch.equal(own[name], value) for name, value in stored.items())
    assert load_initial_objective(objective, begun / "model")
    assert not load_initial_objective(tv.Objective("l1"), begun)


@pytest.mark.parametrize("other", [{"layers": 2}, {"width": 16}])
def test_a_discriminator_of_another_kind_is_refused(begun: Path, other: dict[str, Any], tmp_path: Path) -> None:
    objective = {"l1": {}, "adversarial": {"weight": 0.1, **DISCRIMINATOR, **other}}
    with pytest.raises(CheckpointError, match=r"holds another adversarial than this run's: \d+ tensors differ"):
        train_on(begun, tmp_path / "run", objective=objective)


def test_a_damaged_discriminator_is_refused(begun: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    tv.TransferVAE.from_pretrained(begun / "model").save_pretrained(copy / "model")
    content = bytearray((begun / "objective.safetensors").read_bytes())
    content[-5] ^= 1
    (copy / "objective.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError):
        train_on(copy, tmp_path / "run")


def test_what_does_not_fit_the_saved_model_is_refused(begun: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="has decoder"):
        train_on(begun, tmp_path / "run", {**MODEL, "decoder": "residual"})
    with pytest.raises(CheckpointError, match="no saved model in"):
        train_on(tmp_path, tmp_path / "run")
    with pytest.raises(UnknownNameError, match="part to freeze"):
        train_on(begun, tmp_path / "run", freeze=["prior"])
    with pytest.raises(InvalidOptionError, match="Nothing is left to train"):
        train_on(begun, tmp_path / "run", freeze=["head", "decoder"])


def test_a_trained_decoder_of_another_library_is_trained_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    types = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    theirs: Any = AutoencoderKL(**options, **types, sample_size=32)
    theirs.save_pretrained(tmp_path / "kl")
    decoder = load_diffusers_kl_decoder(tmp_path / "kl", image_size=32).decoder
    backbone = tv.create_backbone("timm:test_resnet", weights=None, node=0, grid=16)
    head = tv.SpatialGaussianHead(backbone.feature_shape(decoder.image_size), latent_dim=4)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    vae = tv.TransferVAE(backbone, head, decoder)
    engine = {**SMALL.engine, "gradient_checkpointing": True}
    after = train_on(None, tmp_path / "run", vae, freeze=["head"], objective="l1", engine=engine).vae
    assert state(after, "decoder").keys() == before.keys()
    assert not all(torch.equal(value, before[name]) for name, value in after.decoder.state_dict().items())
