from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import Dataset

from tests.samples import make_vae, random_images
from transfervae import DiagonalGaussian, PointPosterior
from transfervae.errors import FileWriteError
from transfervae.inference import BATCH, encode_images, reconstruct_images, write_latents


class Listed(Dataset[Tensor]):
    """A batch as a data set."""

    def __init__(self, images: Sequence[Tensor] | Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.mark.parametrize("count", [1, BATCH, BATCH + 3])
def test_all_images_are_encoded_in_order(count: int) -> None:
    vae, images = make_vae().eval(), random_images(count=count)
    done: list[int] = []
    posterior = encode_images(vae, Listed(images), progress=done.append)
    with torch.no_grad():
        expected = vae.encode(images)
    assert_close(posterior.mean, expected.mean, rtol=1e-4, atol=1e-4)
    assert isinstance(posterior, DiagonalGaussian)
    assert_close(posterior.variance, expected.variance, rtol=1e-4, atol=1e-4)
    assert not posterior.mean.requires_grad
    assert done[-1] == count
    assert done == sorted(done)


def test_points_of_all_images_are_encoded_in_order() -> None:
    vae, images = make_vae(head="deterministic", latent_dim=None).eval(), random_images(count=BATCH + 3)
    posterior = encode_images(vae, Listed(images))
    assert isinstance(posterior, PointPosterior)
    assert_close(posterior.mode(), vae.backbone(images), rtol=1e-4, atol=1e-4)


def test_all_images_are_reconstructed_in_order() -> None:
    vae, images = make_vae().train(), random_images(count=BATCH + 2)
    originals, reconstructions = reconstruct_images(vae, Listed(images))
    assert torch.equal(originals, images)
    with torch.no_grad():
        assert_close(reconstructions, vae.reconstruct(images), rtol=1e-4, atol=1e-4)


def test_latents_are_written_as_plain_arrays(tmp_path: Path) -> None:
    posterior = DiagonalGaussian(torch.rand(2, 5), torch.rand(2, 5))
    paths = [Path("a/ü.png"), Path("b.png")]
    write_latents(tmp_path / "latents.npz", paths, posterior)
    with np.load(tmp_path / "latents.npz", allow_pickle=False) as stored:
        assert sorted(stored) == ["logvar", "mean", "paths"]
        assert stored["paths"].tolist() == [str(path) for path in paths]
        assert np.array_equal(stored["mean"], posterior.mean.numpy())
        assert np.array_equal(stored["logvar"], posterior.logvar.numpy())


def test_points_are_written_without_a_log_variance(tmp_path: Path) -> None:
    posterior = PointPosterior(torch.rand(1, 4, 2, 2))
    write_latents(tmp_path / "latents.npz", [Path("a.png")], posterior)
    with np.load(tmp_path / "latents.npz", allow_pickle=False) as stored:
        assert sorted(stored) == ["mean", "paths"]
        assert np.array_equal(stored["mean"], posterior.mean.numpy())


def test_an_unwritable_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    posterior = DiagonalGaussian(torch.rand(1, 5), torch.rand(1, 5))
    with pytest.raises(FileWriteError):
        write_latents(tmp_path / "file" / "latents.npz", [Path("a.png")], posterior)


def test_items_may_be_eight_bits_and_come_with_labels() -> None:
    vae = make_vae().eval()
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = encode_images(vae, Listed(pixels / 255)).mean
    items: tuple[Any, ...] = (
        pixels,
        [(image / 255, 7) for image in pixels],
        [{"image": image, "label": 1} for image in pixels],
    )
    for given in items:
        assert torch.equal(encode_images(vae, Listed(given)).mean, expected)
