import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.cache.small import write_pictures
from transfervae.data import ToyFaces, open_dataset
from transfervae.errors import InvalidOptionError
from transfervae.training._images import RunImages


def images(count: int, val: float, seed: int, *, batch_size: int = 16) -> RunImages:
    faces = ToyFaces(count, 8, dtype=torch.uint8)
    return RunImages(faces, val=val, seed=seed, batch_size=batch_size, workers=0)


@given(count=st.integers(2, 60), val=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
def test_every_image_is_either_learned_from_or_held_out(count: int, val: float, seed: int) -> None:
    split = images(count, val, seed)
    parts = (set(split.training), set(split.val))
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(range(count))
    assert all(parts)
    assert abs(len(parts[1]) - val * count) <= 1


def test_every_process_needs_a_held_out_image() -> None:
    split = images(2, 0.5, 0)
    split.check_ranks(1)
    with pytest.raises(InvalidOptionError, match="2 processes need as many held-out images, there are 1"):
        split.check_ranks(2)


def test_the_split_depends_on_the_seed_alone() -> None:
    first, same, other = (images(50, 0.2, seed).val for seed in (3, 3, 4))
    assert first == same != other


@given(count=st.integers(2, 40), batch=st.integers(1, 50))
def test_an_epoch_has_every_full_batch_of_different_images(count: int, batch: int) -> None:
    split = images(count, 0.1, 0, batch_size=batch)
    sizes = [len(drawn) for drawn in split.train_dataloader()]
    learned = len(split.training)
    assert sizes == ([batch] * (learned // batch) if learned >= batch else [learned])
    assert sum(len(drawn) for drawn in split.val_dataloader()) == len(split.val)


def test_validation_images_of_their_own_are_held_out_and_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("data")
    training = open_dataset(write_pictures(folder / "training", 5, size=(8, 8)), 8)
    val = open_dataset(write_pictures(folder / "val", 3, size=(8, 8)), 8)
    split = RunImages(training, val=val, workers=0)
    assert (split.training, split.val) == ([0, 1, 2, 3, 4], [5, 6, 7])
    assert split.val_names() == ["00.png", "01.png", "02.png"]
    assert torch.equal(split.examples(3)[2] * 255, val[2].float())


def test_the_images_id_tells_sets_apart() -> None:
    tensors = [torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8) for _ in range(2)]
    first, same, other = (
        RunImages(open_dataset(given, 8), workers=0).images_id for given in (*tensors[:1] * 2, tensors[1])
    )
    assert first == same != other
