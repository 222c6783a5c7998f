from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from transfervae.errors import InvalidOptionError, UnknownNameError, UnknownOptionError
from transfervae.options import Option, PartTable, Spec, describe_type, fits, options_of, plain, records_options


@records_options
class Wheel(nn.Module):
    """A part that is a class."""

    def __init__(self, radius: float, *, spokes: int = 8, name: str | None = None) -> None:  # noqa: ARG002 - only recorded
        """Make a wheel.

        Args:
            radius: From its place in the model.
            spokes: How many, at least
                one.
            name: What it is called.
        """
        super().__init__()
        self.radius = radius
        self.spokes = spokes


@records_options
def make_axle(length: int, *, parts: Sequence[int] = (1, 2)) -> nn.Module:
    """A part that is a function's result."""
    return nn.Linear(length, sum(parts))


TABLE = PartTable("part", {"wheel": Wheel, "axle": make_axle})

NAMES = st.text("abcdef_", min_size=1, max_size=8)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text("xyz", max_size=4), st.lists(st.integers(0, 9)))


@given(name=NAMES, options=st.dictionaries(NAMES.filter(lambda name: name != "name"), PLAIN, max_size=4))
def test_a_spec_survives_a_file(name: str, options: dict[str, Any]) -> None:
    spec = Spec(name, **options)
    assert Spec.parse(yaml.safe_load(yaml.safe_dump(spec.to_dict()))) == spec
    assert Spec.parse(name) == Spec(name)
    assert spec.replace(x=1).options == {**options, "x": 1}


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("given_", [5, None, ["wheel"], {"spokes": 3}, {"name": 3}])
def test_what_is_no_spec_is_refused(given_: Any) -> None:
    with pytest.raises(InvalidOptionError, match="part must be a name"):
        TABLE.build(given_, 1.0)


@given(spokes=st.integers(1, 99))
def test_a_part_remembers_what_built_it(spokes: int) -> None:
    wheel = TABLE.build(Spec("wheel", spokes=spokes), 2.0)
    assert TABLE.spec_of(wheel) == Spec("wheel", spokes=spokes, name=None)
    assert TABLE.spec_of(make_axle(3, parts=[spokes])) == Spec("axle", parts=[spokes])
    again = TABLE.build(Spec.parse(TABLE.spec_of(wheel) or ""), 2.0)
    assert again.spokes == spokes


def test_a_subclass_and_a_stranger_have_no_spec() -> None:
    class Larger(Wheel):
        pass

    assert TABLE.spec_of(Larger(1.0)) is None
    assert TABLE.spec_of(nn.Identity()) is None
    assert PartTable("other", {}).spec_of(Wheel(1.0)) is None


def test_options_have_type_default_and_description() -> None:
    assert options_of(Wheel)["spokes"] == Option("spokes", int, 8, "How many, at least one.")
    assert list(TABLE.options("wheel")) == ["spokes", "name"]
    assert options_of(Wheel, skip=("name",)).keys() == {"spokes"}


def test_wrong_names_and_types_are_refused_with_what_is_right() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'wheel'"):
        TABLE.check("weel")
    with pytest.raises(UnknownOptionError, match=r"part 'wheel' has no option 'spoke'\. Did you mean 'spokes'"):
        TABLE.check({"name": "wheel", "spoke": 3})
    with pytest.raises(InvalidOptionError, match="spokes of part 'wheel' must be a whole number, got 'many'"):
        TABLE.check(Spec("wheel", spokes="many"))


@pytest.mark.parametrize(
    ("value", "annotation", "does"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (1, float, True),
        ("1", float, False),
        (None, int | None, True),
        ([1, 2], Sequence[int], True),
        ([1, "2"], Sequence[int], False),
        ("12", Sequence[str], False),
        ((0.9, 0.95), Sequence[float], True),
        (Path("x"), str, False),
        (3, Any, True),
    ],
)
def test_values_fit_their_types(value: object, annotation: Any, does: bool) -> None:
    assert fits(value, annotation) is does


def test_types_are_described_in_words() -> None:
    assert describe_type(int | Sequence[int] | None) == "a whole number or a list or none"


def test_plain_values_are_those_of_files() -> None:
    assert plain({"a": (1, Path("x")), "b": Spec("wheel", spokes=3)}) == {
        "a": [1, "x"],
        "b": {"name": "wheel", "spokes": 3},
    }
