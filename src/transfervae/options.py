"""Parts by name. An option is declared once: as a keyword-only parameter of what builds the part."""

import inspect
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import torch

from transfervae.errors import InvalidOptionError, UnknownNameError, UnknownOptionError

Builder = Callable[..., Any]
AnyBuilder = TypeVar("AnyBuilder", bound=Builder)

RECORD = "_built_by"
NAME = "name"


class Option(NamedTuple):
    """One option of a part.

    Attributes:
        name: As in Python.
        type: Its annotation.
        default: Its default value.
        help: Its description, from the docstring's `Args`.
    """

    name: str
    type: Any
    default: Any
    help: str


class Spec:
    """A part by name, with options of its own: `Spec("deterministic", tau=0.8)`.

    Attributes:
        name: A name from the part's table.
        options: Values by name; what is not named has the part's default.
    """

    def __init__(self, name: str, /, **options: Any) -> None:
        """Name a part.

        Args:
            name: A name from the part's table, such as `heads.HEADS`.
            options: Keyword-only parameters of what builds the part.
        """
        self.name = name
        self.options = options

    @staticmethod
    def parse(value: "Spec | str | Mapping[str, Any]", kind: str = "part") -> "Spec":
        """Read a name, a mapping such as `{"name": "deterministic", "tau": 0.8}`, or a spec as it is.

        Raises:
            InvalidOptionError: For anything else.
        """
        if isinstance(value, Spec):
            return value
        if isinstance(value, str):
            return Spec(value)
        if (
            isinstance(value, Mapping)
            and isinstance(value.get(NAME), str)
            and all(isinstance(key, str) for key in value)
        ):
            return Spec(value[NAME], **{key: option for key, option in value.items() if key != NAME})
        raise InvalidOptionError(f'{kind} must be a name, or {{"name": NAME, option: value, ...}}, got {value!r}.')

    def replace(self, **options: Any) -> "Spec":
        """The same part, with some options given anew."""
        return Spec(self.name, **{**self.options, **options})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and YAML hold them; `parse` reads them again."""
        return {NAME: self.name, **{name: plain(value) for name, value in self.options.items()}}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"Spec({', '.join([repr(self.name), *(f'{name}={value!r}' for name, value in self.options.items())])})"


class PartTable(Mapping[str, Builder]):
    """Builders of one kind of part, by name; read-only.

    A builder takes what its place in a model gives by position, and its options by keyword.

    Attributes:
        kind: For messages, such as "head".
    """

    def __init__(self, kind: str, builders: Mapping[str, Builder]) -> None:
        """Make a table.

        Args:
            kind: For messages, such as "head".
            builders: By name, each with `records_options`.
        """
        self.kind = kind
        self._builders = dict(builders)

    def __getitem__(self, name: str) -> Builder:
        return self._builders[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders)

    def __len__(self) -> int:
        return len(self._builders)

    def options(self, name: str) -> dict[str, Option]:
        """The options of a part, by name.

        Raises:
            UnknownNameError: If there is no such part.
        """
        if name not in self._builders:
            raise UnknownNameError(self.kind, name, self._builders)
        return options_of(self._builders[name])

    def check(self, value: Spec | str | Mapping[str, Any]) -> Spec:
        """A spec whose part and options exist, its values of the declared types.

        Raises:
            UnknownNameError: For another part.
            UnknownOptionError: For another option.
            InvalidOptionError: For a value of another type.
        """
        spec = Spec.parse(value, self.kind)
        check_values(f"{self.kind} {spec.name!r}", self.options(spec.name), spec.options)
        return spec

    def build(self, value: Spec | str | Mapping[str, Any], *context: Any) -> Any:
        """Build a part.

        Args:
            value: Name and options.
            context: What the part's place in a model gives, such as the features' shape.

        Raises:
            TransferVAEError: As `check`, and as the builder.
        """
        spec = self.check(value)
        return self._builders[spec.name](*context, **spec.options)

    def build_empty(self, value: Spec | str | Mapping[str, Any], *context: Any) -> Any:
        """Build a part on the meta device, where tensors have shapes and no memory.

        Raises:
            TransferVAEError: As `build`.
            InvalidOptionError: If a tensor would have more elements than tensors can have.
        """
        try:
            with torch.device("meta"):
                return self.build(value, *context)
        except (RuntimeError, TypeError, OverflowError) as error:
            raise InvalidOptionError(
                f"{self.kind} {Spec.parse(value, self.kind)} is larger than a tensor can be."
            ) from error

    def spec_of(self, part: object) -> Spec | None:
        """The spec that builds a part again; None for one that this table did not build."""
        builder, options = getattr(part, RECORD, (None, {}))
        for name, known in self._builders.items():
            if known is builder:
                return Spec(name, **options)
        return None


def records_options(builder: AnyBuilder) -> AnyBuilder:
    """Let a class or a function remember, in each part that it builds, the options that built it.

    A subclass is another class: its instances hold no record of its parent's.
    """
    if not isinstance(builder, type):

        @wraps(builder)
        def build(*args: Any, **kwargs: Any) -> Any:
            part = builder(*args, **kwargs)
            part.__dict__[RECORD] = (build, _with_defaults(build, kwargs))
            return part

        return build  # type: ignore[return-value]
    kind: Any = builder
    initialise = kind.__init__

    @wraps(initialise)
    def recording(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self) is builder:
            self.__dict__[RECORD] = (builder, _with_defaults(builder, kwargs))
        initialise(self, *args, **kwargs)

    kind.__init__ = recording
    return builder


def options_of(builder: Builder, *, skip: Sequence[str] = ()) -> dict[str, Option]:
    """The keyword-only parameters of a class or function, with their descriptions."""
    described = _described_arguments(builder)
    return {
        name: Option(name, parameter.annotation, parameter.default, described.get(name, ""))
        for name, parameter in inspect.signature(builder).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in skip
    }


def check_values(owner: str, known: Mapping[str, Option], given: Mapping[str, Any]) -> None:
    """Check names and types of options.

    Raises:
        UnknownOptionError: For a name that does not exist.
        InvalidOptionError: For a value of another type than the declared one.
    """
    for name, value in given.items():
        if name not in known:
            raise UnknownOptionError(owner, name, known)
        if not fits(value, known[name].type):
            raise InvalidOptionError(f"{name} of {owner} must be {describe_type(known[name].type)}, got {value!r}.")


def fits(value: object, annotation: Any) -> bool:  # noqa: PLR0911 - one case a line
    """Whether a plain value is of a declared type; a whole number is a number, a truth value is none."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return any(fits(value, choice) for choice in get_args(annotation))
    if annotation in (Any, inspect.Parameter.empty):
        return True
    if annotation in (None, type(None)):
        return value is None
    if origin is Literal:
        return value in get_args(annotation)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        inner = [choice for choice in get_args(annotation) if choice is not Ellipsis] or [Any]
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and all(any(fits(entry, choice) for choice in inner) for entry in value)
        )
    kind = origin or annotation
    return isinstance(value, kind) if isinstance(kind, type) else True


def describe_type(annotation: Any) -> str:
    """A declared type in words, such as "a whole number or none"."""
    choices = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    words = (_TYPE_WORDS.get(get_origin(choice) or choice) or str(choice) for choice in choices)
    return " or ".join(dict.fromkeys(words))


def plain(value: Any) -> Any:
    """A value as JSON and YAML hold it: sequences as lists, paths as text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    if isinstance(value, Spec):
        return value.to_dict()
    return value


_TYPE_WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "none",
    Sequence: "a list",
    tuple: "a list",
    os.PathLike: "a path",
}


def _with_defaults(builder: Builder, given: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(builder).parameters.values()
    keyword_only = [entry for entry in parameters if entry.kind is entry.KEYWORD_ONLY]
    return {entry.name: given.get(entry.name, entry.default) for entry in keyword_only}


def _described_arguments(builder: Builder) -> dict[str, str]:
    """The entries of a google docstring's `Args` (and `Attributes`), each in one line."""
    constructor = inspect.getdoc(builder.__init__) if isinstance(builder, type) else None  # type: ignore[misc]
    described: dict[str, str] = {}
    for text in (inspect.getdoc(builder) or "", constructor or ""):
        section = ""
        name = ""
        for line in text.splitlines():
            stripped = line.strip()
            if line and not line.startswith(" "):
                section = stripped
            elif section in ("Args:", "Attributes:") and line.startswith("    ") and not line.startswith("     "):
                name, _, start = stripped.partition(": ")
                described[name] = start
            elif section in ("Args:", "Attributes:") and stripped and name:
                described[name] += f" {stripped}"
    return described
