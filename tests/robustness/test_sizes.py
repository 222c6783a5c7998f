"""Numbers far too large are refused in one line, before memory or time is spent on them."""

import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import transfervae as tv
from tests.integration.command import TINY, assert_one_line_error, run
from tests.samples import make_backbone, make_vae
from transfervae import saving
from transfervae.errors import CheckpointError, TransferVAEError
from transfervae.files import WEIGHTS_FILE, read_json, read_tensors, write_json, write_tensors

HUGE = (99_999_999_999, 2**63, 10**30)
LIMIT = 16 * 2**30
"""Address space of the commands; what is meant to be refused early does not come near it."""


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize(
    "options",
    [
        lambda value: {"latent_dim": value},
        lambda value: {"head": tv.Spec("spatial", latent_dim=value)},
        lambda value: {"head": tv.Spec("pooled", latent_dim=8, queries=value)},
        lambda value: {"decoder": tv.Spec("resize", width=8 * value)},
        lambda value: {"decoder": tv.Spec("transposed", width=8 * value)},
        lambda value: {"decoder": tv.Spec("kl", width=8 * value)},
        lambda value: {"decoder": tv.Spec("kl", resnets_per_block=value)},
        lambda value: {"decoder": tv.Spec("vit", width=4 * value)},
        lambda value: {"decoder": tv.Spec("vit", width=64, depth=value)},
        lambda value: {"decoder": tv.Spec("vit", width=64, mlp_width=value)},
    ],
)
def test_parts_that_no_machine_holds_are_refused(options: Any, value: int) -> None:
    with pytest.raises(TransferVAEError):
        tv.build_vae(make_backbone("resnet"), image_size=32, **options(value))


def test_a_part_that_this_machine_cannot_hold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfervae.build._machine_memory", lambda: 10_000)
    with pytest.raises(TransferVAEError, match=r"The decoder would take .* and this machine has 10\.0 kB of memory"):
        tv.build_vae(make_backbone("resnet"), image_size=32, latent_dim=4)


def test_looking_at_sizes_draws_no_random_numbers() -> None:
    backbone = make_backbone("resnet")
    torch.manual_seed(0)
    vae = tv.build_vae(backbone, image_size=32, latent_dim=4)
    torch.manual_seed(0)
    head = tv.GaussianHead(backbone.feature_shape((32, 32)), latent_dim=4)
    assert torch.equal(next(vae.head.parameters()), next(head.parameters()))


def test_a_saved_model_of_other_sizes_than_its_tensors_is_refused_by_their_shapes(tmp_path: Path) -> None:
    make_vae().save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    config["head"]["latent_dim"] = 10**6
    tensors = read_tensors(tmp_path / WEIGHTS_FILE).tensors
    write_json(tmp_path / "config.json", config)
    write_tensors(tmp_path / WEIGHTS_FILE, tensors, plain=saving._as_text(config))
    with pytest.raises(CheckpointError, match="5 differ, first head"):
        tv.TransferVAE.from_pretrained(tmp_path, backbone=make_backbone("vgg19"))


@pytest.mark.parametrize(
    "options",
    [
        ("--head.latent-dim", "99999999999"),
        ("--decoder", "vit", "--decoder.depth", "99999999999"),
        ("--image-size", "99999999999"),
        ("--dataset.faces", "9223372036854775808"),
        ("--backbone.grid", "99999999999"),
        ("--seed", "99999999999999999999"),
        ("--objective.kl.free-bits", "1e308"),
        ("--optimizer.learning-rate", "1e308"),
    ],
    ids=" ".join,
)
def test_commands_with_huge_numbers_end_in_one_line(options: tuple[str, ...], tmp_path: Path) -> None:
    tiny = [word for word in TINY if word not in ("--decoder.width", "32")] if "vit" in options else TINY
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (LIMIT, LIMIT))
    process = run("train", *tiny, *options, "--epochs", "1", "--out", tmp_path / "run", before=limit)
    assert_one_line_error(process)
