import inspect
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfervae import errors

TREE = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, Exception) and error is not errors.TransferVAEError
]
BUILTINS: dict[type[Exception], type[Exception]] = {
    errors.WeightsUnavailableError: OSError,
    errors.CheckpointError: OSError,
    errors.CacheError: OSError,
    errors.CacheInUseError: OSError,
    errors.ImageFileError: OSError,
    errors.FileWriteError: OSError,
    errors.RunFolderError: OSError,
    errors.MissingExtraError: ImportError,
    errors.DivergedError: ArithmeticError,
}


@pytest.mark.parametrize("error", TREE)
def test_every_error_derives_from_the_base_and_from_a_builtin(error: type[Exception]) -> None:
    assert issubclass(error, errors.TransferVAEError)
    assert issubclass(error, BUILTINS.get(error, ValueError))


@pytest.mark.parametrize("error", TREE)
def test_every_error_says_what_it_means(error: type[Exception]) -> None:
    assert error.__doc__


@given(names=st.lists(st.text("abcdefgh", min_size=4, max_size=8), min_size=1, max_size=24, unique=True))
def test_an_unknown_name_s_message_lists_what_is_known(names: list[str]) -> None:
    message = str(errors.UnknownNameError("decoder", "zzz", names))
    assert message.startswith("Unknown decoder 'zzz'.")
    assert all(name in message for name in names)
    assert "Did you mean" not in message


def test_a_misspelt_name_s_message_suggests_the_nearest_and_ends_with_the_hint() -> None:
    message = str(errors.UnknownNameError("decoder", "risize", ["resize", "transpose"], hint="Look there."))
    assert "Did you mean 'resize'?" in message
    assert message.endswith("Look there.")


def test_many_names_are_not_listed() -> None:
    names = [f"block{i}_conv{i}" for i in range(25)]
    message = str(errors.UnknownNameError("node", "block3_conv", names))
    assert "Known:" not in message
    assert "Did you mean 'block" in message


def test_a_missing_extra_s_message_says_how_to_install_it() -> None:
    assert "pip install 'transfervae[train]'" in str(errors.MissingExtraError("Drawing", "train"))


@pytest.mark.parametrize("kind", [errors.TransferVAEError, *TREE])
def test_every_error_survives_pickling_with_its_message(kind: type[Exception]) -> None:
    given = {
        errors.UnknownNameError: ("decoder", "resise", ["resize"]),
        errors.UnknownOptionError: ("head", "latent", ["latent_dim"]),
        errors.MissingExtraError: ("Drawing", "train"),
    }.get(kind, ("what went wrong",))
    error = kind(*given)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error) != ""
