from hypothesis import given
from hypothesis import strategies as st

from transfervae.training import TrainOptions
from transfervae.training.images import RunImages


def images(count: int, held_out: float, seed: int) -> RunImages:
    options = TrainOptions(image_size=(8, 8), faces=count, held_out=held_out, seed=seed)
    return RunImages(options, workers=0)


@given(count=st.integers(2, 60), held_out=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
def test_every_image_is_either_learned_from_or_held_out(count: int, held_out: float, seed: int) -> None:
    split = images(count, held_out, seed)
    parts = (set(split.training), set(split.held_out))
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(range(count))
    assert all(parts)
    assert abs(len(parts[1]) - held_out * count) <= 1


def test_the_split_depends_on_the_seed_alone() -> None:
    first, same, other = (images(50, 0.2, seed).held_out for seed in (3, 3, 4))
    assert first == same != other


@given(count=st.integers(2, 40), batch=st.integers(1, 50))
def test_an_epoch_has_every_full_batch_of_different_images(count: int, batch: int) -> None:
    options = TrainOptions(image_size=(4, 4), faces=count, batch_size=batch)
    split = RunImages(options, workers=0)
    sizes = [len(drawn) for drawn in split.train_dataloader()]
    learned = len(split.training)
    assert sizes == ([batch] * (learned // batch) if learned >= batch else [learned])
    assert sum(len(drawn) for drawn in split.val_dataloader()) == len(split.held_out)
