from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from torchvision.datasets import FakeData
from torchvision.datasets import ImageFolder as TorchvisionFolder

from tests.cache.small import write_pictures
from transfervae.data import ImageDataset, ImageFolder, JoinedImages, ToyFaces, open_dataset
from transfervae.errors import InvalidImageError, InvalidOptionError

PIXELS = torch.randint(0, 256, (5, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class HuggingFace:
    """What a `datasets.Dataset` offers: rows as mappings, columns by name, and features."""

    class ClassLabel:
        names = ("cat", "dog")

    def __init__(self) -> None:
        self.features: Mapping[str, Any] = {"image": object(), "label": self.ClassLabel()}

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return [index % 2 for index in range(len(self))]
        return {"image": Image.fromarray(PIXELS[key].permute(1, 2, 0).numpy()), "label": key % 2}


def listed(make: Callable[[Tensor], Any]) -> list[Any]:
    return [make(image) for image in PIXELS]


FORMS: dict[str, Any] = {
    "tensor": PIXELS,
    "floats": PIXELS / 255,
    "array": PIXELS.numpy(),
    "tensors": listed(lambda image: image),
    "tuples": listed(lambda image: (image, 1)),
    "lists": listed(lambda image: [image / 255, "a label"]),
    "mappings": listed(lambda image: {"image": image, "label": 0}),
    "other keys": listed(lambda image: {"photo": image, "age": 7}),
    "channels last": listed(lambda image: image.permute(1, 2, 0).numpy()),
    "pillow": listed(lambda image: Image.fromarray(image.permute(1, 2, 0).numpy())),
    "hugging face": HuggingFace(),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_in_any_form_are_the_same_eight_bits(form: str) -> None:
    opened = open_dataset(FORMS[form], 12)
    assert isinstance(opened, ImageDataset)
    assert torch.equal(torch.stack([opened[index] for index in range(len(opened))]), PIXELS)
    assert opened.bad == {}
    assert opened.name_of(3) == "item 3"


def test_images_of_another_size_are_scaled_and_cut_as_files_are(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    for given in (image, torch.from_numpy(np.array(image)).permute(2, 0, 1), np.array(image)):
        assert torch.equal(open_dataset([given], (16, 20))[0], ImageFolder(tmp_path, (16, 20), dtype=torch.uint8)[0])


def test_labels_come_along(tmp_path: Path) -> None:
    for kind in ("cats", "dogs"):
        write_pictures(tmp_path / kind, 3, size=(8, 8))
    folder = open_dataset(tmp_path, 8)
    assert (folder.classes, folder.labels) == (["cats", "dogs"], [0, 0, 0, 1, 1, 1])
    torchvision = open_dataset(TorchvisionFolder(str(tmp_path)), 8)
    assert (torchvision.classes, torchvision.labels) == (["cats", "dogs"], [0, 0, 0, 1, 1, 1])
    assert torch.equal(torchvision[4], folder[4])
    hugging_face = open_dataset(HuggingFace(), 12)
    assert (hugging_face.classes, hugging_face.labels) == (["cat", "dog"], [0, 1, 0, 1, 0])
    assert open_dataset(FORMS["tuples"], 12).labels == [1] * 5
    assert open_dataset(FORMS["lists"], 12).labels is None
    assert open_dataset(PIXELS, 12).labels is None
    assert open_dataset(write_pictures(tmp_path / "flat", 2, size=(8, 8)), 8).classes is None
    assert len(open_dataset(FakeData(4, (3, 9, 9), 2), 9).labels or ()) == 4


def test_several_folders_can_be_given(tmp_path: Path) -> None:
    folders = [write_pictures(tmp_path / name, 2, size=(8, 8)) for name in ("one", "two")]
    assert len(open_dataset([str(folders[0]), folders[1]], 8)) == 4


def test_the_identity_tells_content_apart_and_finds_what_is_random() -> None:
    first, same, other = (open_dataset(pixels, 12).identity for pixels in (PIXELS, PIXELS.clone(), 255 - PIXELS))
    assert first == same != other

    class Noise(Dataset[Tensor]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, _: int) -> Tensor:
            return torch.rand(3, 8, 8)

    assert open_dataset(Noise(), 8).identity["content"] == "random"


def test_a_joined_set_is_both_in_order() -> None:
    joined = JoinedImages(open_dataset(PIXELS, 12), ToyFaces(2, 12, dtype=torch.uint8))
    assert len(joined) == 7
    assert torch.equal(joined[4], PIXELS[4])
    assert [joined.name_of(index) for index in (0, 6)] == ["item 0", "face 1"]
    assert joined.describe_item(6).name == "val/face 1"


class Endless(IterableDataset[Tensor]):
    """No map-style data set."""

    def __iter__(self) -> Iterator[Tensor]:
        yield PIXELS[0]


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Endless(), "map-style data set, got Endless"),
        (7, "map-style data set, got int"),
        ([], "holds no images"),
        (PIXELS[0], r"\[n, 3, h, w\], got \[3, 12, 12\]"),
        ([("a", 1)], "Items must be images"),
        ([{"left": PIXELS[0], "right": PIXELS[1]}], "the keys left, right"),
        ([torch.zeros(4, 8, 8)], r"item 0: .*got \[4, 8, 8\]"),
    ],
)
def test_what_holds_no_images_is_refused(data: Any, words: str) -> None:
    with pytest.raises(InvalidOptionError, match=words):
        open_dataset(data, 8)[0]


def test_images_outside_the_unit_range_are_refused_by_name() -> None:
    opened = open_dataset([torch.rand(3, 8, 8), 7 + torch.rand(3, 8, 8)], 8)
    with pytest.raises(InvalidImageError, match="item 1: "):
        opened[1]
