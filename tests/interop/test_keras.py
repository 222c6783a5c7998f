import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch

import transfervae as tv
from transfervae.errors import (
    CheckpointError,
    MissingExtraError,
    UnknownNameError,
    WeightsMismatchError,
    WeightsUnavailableError,
)
from transfervae.interop import load_keras_vgg19

NODES = ("block1_conv2", "block3_conv4", "block5_pool")

KERAS = """
import sys
import h5py, keras, numpy as np
from keras.src.legacy.saving import legacy_h5_format

folder, *nodes = sys.argv[1:]
random = np.random.default_rng(0)
model = keras.applications.VGG19(weights=None, include_top=False)
for layer in model.layers:
    if layer.weights:
        shape = layer.kernel.shape
        layer.set_weights([
            random.normal(size=shape, scale=(2 / np.prod(shape[:3])) ** 0.5),
            random.normal(size=shape[3:], scale=0.1),
        ])
with h5py.File(f"{folder}/weights.h5", "w") as file:
    legacy_h5_format.save_weights_to_hdf5_group(file, model)
model.load_weights(f"{folder}/weights.h5")
images = random.uniform(size=(2, 64, 48, 3)).astype("float32")
several = keras.Model(model.input, [model.get_layer(node).output for node in nodes])
features = several.predict(keras.applications.vgg19.preprocess_input(255 * images), verbose=0)
np.savez(f"{folder}/expected.npz", images=images, **dict(zip(nodes, features)))
"""


@pytest.fixture(scope="module")
def keras_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Keras itself wrote and computed, in a process of its own: it may be imported with one backend only."""
    folder = tmp_path_factory.mktemp("keras")
    environment = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KERAS, str(folder), *NODES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return folder


@pytest.mark.parametrize("node", NODES)
def test_features_are_those_of_keras(keras_folder: Path, node: str) -> None:
    given = np.load(keras_folder / "expected.npz")
    images, expected = (torch.from_numpy(given[name]).permute(0, 3, 1, 2) for name in ("images", node))
    features = load_keras_vgg19(keras_folder / "weights.h5", node=node)(images)
    assert features.shape == expected.shape
    assert expected.square().mean() > 100
    assert (features - expected).abs().max() / expected.abs().max() <= 1e-5


def test_several_nodes_are_fused(keras_folder: Path) -> None:
    backbone = load_keras_vgg19(keras_folder / "weights.h5", node=["block1_pool", "block2_pool"])
    assert backbone.feature_shape(32) == (64 + 128, 16, 16)


def test_a_saved_model_finds_its_weights_again(keras_folder: Path, tmp_path: Path) -> None:
    backbone = load_keras_vgg19(keras_folder / "weights.h5", node="block2_pool")
    vae = tv.build_vae(backbone, image_size=32, latent_dim=4, decoder=tv.Spec("resize", width=16)).eval()
    vae.save_pretrained(tmp_path)
    again = tv.TransferVAE.from_pretrained(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    assert again.backbone.provenance.name == "keras_vgg19"
    assert torch.equal(again.reconstruct(images), vae.reconstruct(images))


def write_block1(path: Path, *, names: str = "{layer}_{kind}_1:0", root: str = "", **changes: Any) -> Path:
    """The first block's weights as Keras would write them, with some parts changed, added or (None) left out."""
    random = np.random.default_rng(0)
    tensors = {
        "block1_conv1/W": random.normal(size=(3, 3, 3, 64), scale=0.01),
        "block1_conv1/b": random.normal(size=64),
        "block1_conv2/W": random.normal(size=(3, 3, 64, 64), scale=0.01),
        "block1_conv2/b": random.normal(size=64),
        **{name.replace("__", "/"): value for name, value in changes.items()},
    }
    with h5py.File(path, "w") as file:
        group = file.require_group(root) if root else file
        group.attrs["layer_names"] = sorted({name.partition("/")[0].encode() for name in tensors} | {b"block1_pool"})
        group.create_group("block1_pool")
        for name, value in tensors.items():
            layer, _, kind = name.partition("/")
            if value is not None:
                group.require_group(layer)[names.format(layer=layer, kind=kind)] = value
    return path


@pytest.mark.parametrize(
    ("names", "root"),
    [
        ("{layer}_{kind}_1:0", ""),
        ("{layer}/{kind}:0", ""),
        ("{layer}/{kind}", "model_weights"),
        ("vgg19/{layer}/{kind}:0", ""),
    ],
)
def test_all_versions_names_are_understood(tmp_path: Path, names: str, root: str) -> None:
    path = write_block1(tmp_path / "weights.h5", names=names, root=root)
    expected = load_keras_vgg19(write_block1(tmp_path / "other.h5"), node="block1_pool")
    assert load_keras_vgg19(path, node="block1_pool").fingerprint == expected.fingerprint


def test_the_classifier_and_later_blocks_are_left_out(tmp_path: Path) -> None:
    rest: dict[str, Any] = {
        "block2_conv1__W": np.zeros((3, 3, 64, 128)),
        "fc1__W": np.zeros((4, 5)),
        "fc1__b": np.zeros(5),
        "predictions__W": np.zeros((5, 2)),
        "predictions__b": np.zeros(2),
    }
    path = write_block1(tmp_path / "weights.h5", **rest)
    backbone = load_keras_vgg19(path, node="block1_pool")
    assert sum(value.numel() for value in backbone.network.state_dict().values()) == 38_720


def test_weights_are_required_but_may_be_random(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsUnavailableError, match=r"keras_vgg19 has no weights of its own: download https.*notop\.h5"
    ):
        tv.create_backbone("keras_vgg19")
    backbone = tv.create_backbone("keras_vgg19", node="block1_pool", weights=None)
    assert backbone.provenance.weights is None
    with pytest.raises(UnknownNameError, match="Did you mean 'block1_pool'"):
        load_keras_vgg19(tmp_path, node="block1_pol")


def test_misfits_are_named_and_counted(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "block1_conv1__b": None,
        "conv1__W": np.zeros((7, 7, 3, 64)),
        "conv1__b": np.zeros(64),
        "block1_conv2__W": np.zeros((3, 3, 64, 32)),
    }
    with pytest.raises(WeightsMismatchError) as caught:
        load_keras_vgg19(write_block1(tmp_path / "weights.h5", **changes), node="block1_pool")
    assert str(caught.value) == (
        "The weights do not fit keras_vgg19: block1_conv1/bias is missing; conv1/kernel is not expected; conv1/bias is"
        " not expected, and 1 more."
    )


def test_the_file_of_another_network_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["anything"] = np.zeros(3)
    with pytest.raises(WeightsMismatchError, match=r"block1_conv1/kernel is missing; .*; .*, and 29 more"):
        load_keras_vgg19(tmp_path / "weights.h5")


def test_keras_3_s_own_layout_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 64))
    with pytest.raises(CheckpointError, match=r"Keras 3's own layout.*model\.save"):
        load_keras_vgg19(tmp_path / "a.weights.h5")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "There is no weights file"),
        (lambda path: path.write_bytes(b"no HDF5"), "cannot be read as HDF5: .*signature not found"),
        (lambda path: path.write_bytes(b""), "cannot be read as HDF5"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "cannot be read as HDF5: .*truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "cannot be read as HDF5: .*truncated"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    path = write_block1(tmp_path / "weights.h5")
    spoil(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_keras_vgg19(path, node="block1_pool")
    assert repr(str(path)) in str(caught.value)


def test_tensors_of_something_else_are_refused(tmp_path: Path) -> None:
    path = write_block1(tmp_path / "weights.h5", block1_conv1__b=b"text")
    with pytest.raises(CheckpointError, match="cannot be read as HDF5"):
        load_keras_vgg19(path, node="block1_pool")


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=re.escape("Reading Keras weights needs the extra 'keras'")):
        load_keras_vgg19(tmp_path / "weights.h5")
