"""Commands whose options are made from declarations: keyword-only parameters of parts, and fields of option groups."""

import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias, Union, get_args, get_origin

import typer
import yaml

from transfervae.errors import InvalidOptionError
from transfervae.options import NAME, Option, describe_type, fits

Tree: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, ...]

UNREAD: Any = object()
"""The result of `_read_text` for text that is not of the type."""


class Section(NamedTuple):
    """Options that belong together: one panel of the help, and one mapping of a file.

    Attributes:
        key: Such as "head" or "objective.kl"; "" for options at the top.
        panel: Title of the panel.
        options: By name.
        name: Of a part that is chosen by name, the one that is.
        names: Of such a part, what there is to choose from.
        chooser_help: Of such a part, the help of the option that chooses.
        is_scanned: Whether the options were read before the command line is parsed, and count no more.
    """

    key: str
    panel: str
    options: Mapping[str, Option]
    name: str | None = None
    names: Sequence[str] = ()
    chooser_help: str = ""
    is_scanned: bool = False

    @property
    def path(self) -> Key:
        """The key as a path in a file."""
        return tuple(filter(None, self.key.split(".")))

    @property
    def chooser(self) -> Option | None:
        """The option that chooses the part by name, if there is one."""
        if self.name is not None:
            return Option(self.key, str, self.name, self.chooser_help or ", ".join(self.names))
        return None if NAME not in self.options else self.options[NAME]._replace(name=self.key)


def add_command(
    app: typer.Typer,
    name: str,
    sections: Sequence[Section],
    run: Callable[[Tree], None],
    *,
    about: str,
    positionals: Sequence[inspect.Parameter] = (),
) -> None:
    """Add a command to an application.

    Args:
        app: The application.
        name: The command's name.
        sections: Its options.
        run: Called with what stands on the command line, as a file would hold it.
        about: Its help.
        positionals: Typer's parameters that are no options.
    """

    def command(context: typer.Context, **values: Any) -> None:
        given: Tree = {}
        scanned = {name for section in sections if section.is_scanned for name in section.options}
        for key, value in values.items():
            source = context.get_parameter_source(key)
            if key not in scanned and source is not None and source.name == "COMMANDLINE":
                _put(given, _path_of(key, sections), value)
        run(given)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *positionals, *(entry for section in sections for entry in _parameters(section))]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {entry.name: entry.annotation for entry in parameters}
    app.registered_commands = [entry for entry in app.registered_commands if entry.name != name]  # of an earlier call
    app.command(name, help=about)(command)


def complete(sections: Sequence[Section], *layers: tuple[Tree, Callable[[Key], str]]) -> Tree:
    """All options, each from the last layer that gives it, or at its default.

    Args:
        sections: What options there are.
        layers: Options as a file holds them, and how a message names one of them.

    Raises:
        InvalidOptionError: For an option that no section has, or a value of another type.
    """
    known: dict[Key, Option] = {}
    for section in sections:
        if section.is_scanned:
            continue
        if section.name is not None:
            known[*section.path, NAME] = Option(NAME, str, section.name, "")
        known |= {(*section.path, name): option for name, option in section.options.items()}
    tree: Tree = {}
    for path, option in known.items():
        _put(tree, path, option.default)
    for layer, spell in layers:
        for path, value in _leaves(layer, known):
            if path not in known:
                raise unknown_option(spell(path), [spell(entry) for entry in (*known, *{entry[:1] for entry in known})])
            _put(tree, path, read_value(spell(path), value, known[path].type))
    return tree


def read_value(label: str, value: Any, annotation: Any) -> Any:
    """A value of the declared type: text is read, anything else must fit as it is.

    Args:
        label: How a message names the option.
        value: Text from the command line, or a file's value.
        annotation: The declared type.

    Raises:
        InvalidOptionError: If it is of another type.
    """
    for choice in _choices(annotation, value) if isinstance(value, str) else ():
        read = _read_text(value, choice)
        if read is not UNREAD and fits(read, annotation):
            return read
    if not isinstance(value, str) and fits(value, annotation):
        return value
    raise InvalidOptionError(f"{label} must be {describe_type(annotation)}, got {value!r}.")


COMMAND_LINE_ONLY = ("config", "print_config", "resume")
"""Options that a file cannot hold."""


def read_file(path: Path) -> Tree:
    """Read options from a YAML or JSON file: plain values only, so that nothing in it is imported or run.

    Raises:
        InvalidOptionError: If it cannot be read, or holds no options by name.
    """
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InvalidOptionError(f"The configuration {str(path)!r} cannot be read: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InvalidOptionError(f"The configuration {str(path)!r} must hold options by name.")
    for name in COMMAND_LINE_ONLY:
        if name in tree:
            raise InvalidOptionError(f"{name} belongs on the command line, not into the configuration {str(path)!r}.")
    return tree


def spell_flag(path: Key) -> str:
    """An option as it stands on the command line."""
    return "--" + ".".join(entry for entry in path if entry != NAME or len(path) == 1).replace("_", "-")


def spell_key(path: Key) -> str:
    """An option as it stands in a file."""
    return ".".join(path)


def scan(words: Sequence[str], flag: str) -> str | None:
    """The value of an option before anything is parsed; the last one counts."""
    pairs = zip(words, [*words[1:], None], strict=True)
    found = [value for word, value in pairs if word == flag and value is not None]
    found += [word.partition("=")[2] for word in words if word.startswith(f"{flag}=")]
    return found[-1] if found else None


def unknown_option(name: str, known: Sequence[str]) -> InvalidOptionError:
    """An error that names the nearest option: as a whole, or by what follows its last dot."""
    bare = name.rpartition(".")[2].lstrip("-")
    by_last = {entry.rpartition(".")[2].lstrip("-"): entry for entry in known}
    near = [by_last[match] for match in get_close_matches(bare, by_last, 1, 0.75)] if "." not in name else []
    near = near or [match for match in get_close_matches(name, known, 1) if "." not in name or "." in match]
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    siblings = [entry for entry in known if entry.rpartition(".")[0] == name.rpartition(".")[0] != ""]
    if not near and siblings:
        suggestion = f" The chosen part has {', '.join(siblings)}."
    return InvalidOptionError(f"Unknown option {name!r}.{suggestion}")


def _parameters(section: Section) -> Iterator[inspect.Parameter]:
    if section.chooser is not None:
        yield _parameter(section.panel, "", section.chooser, section.names)
    for option in section.options.values():
        if option.name != NAME:
            yield _parameter(section.panel, section.key, option)


def _parameter(panel: str, key: str, option: Option, names: Sequence[str] = ()) -> inspect.Parameter:
    flag = spell_flag((*filter(None, key.split(".")), option.name))
    shown: dict[str, Any] = {"help": option.help, "rich_help_panel": panel}
    if option.type is bool:
        negative = spell_flag((*filter(None, key.split(".")), f"no_{option.name}"))
        info = typer.Option(f"{flag}/{negative}", show_default=False, **shown)
        kind: Any = bool
    else:
        info = typer.Option(
            flag,
            metavar="NAME" if names else _metavar(option.type),
            show_default=_show(option.default),
            parser=str,  # `complete` reads it, as it reads a file's text
            autocompletion=(lambda: list(names)) if names else None,
            **shown,
        )
        kind = str | None
    name = "__".join(filter(None, (*key.split("."), option.name)))
    default = option.default if option.type is bool or _show(option.default) is True else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _show(default: Any) -> bool | str:
    if default is None or default is inspect.Parameter.empty:
        return False
    return True if isinstance(default, str | int | float) else ",".join(map(str, default))


def _metavar(annotation: Any) -> str:
    short = {int: "INT", float: "FLOAT", str: "TEXT", bool: "BOOL"}
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    named = ("LIST" if _is_list(kind) else short.get(kind, "PATH") for kind in kinds if kind is not type(None))
    return "|".join(dict.fromkeys(named))


def _choices(annotation: Any, text: str) -> list[Any]:
    """The types that text may be read as: a list where there are commas, and text only if nothing else fits."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    choices = list(get_args(annotation)) if is_union else [annotation]

    def rank(choice: Any) -> int:
        if _is_list(choice):
            return 0 if "," in text or not is_union else 3
        return 2 if choice is str else 1

    return sorted(choices, key=rank)


def _is_list(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _read_text(text: str, kind: Any) -> Any:  # noqa: PLR0911 - one case a type
    if kind is type(None):
        return None if text.lower() in {"none", "null"} else UNREAD
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), UNREAD)
    if _is_list(kind):
        inner = next((entry for entry in get_args(kind) if entry is not Ellipsis), str)
        try:
            return [read_value("", part.strip(), inner) for part in text.split(",")]
        except InvalidOptionError:
            return UNREAD
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return UNREAD
    return text


def _path_of(parameter: str, sections: Sequence[Section]) -> Key:
    path = tuple(parameter.split("__"))
    chooses = any(section.path == path and section.chooser is not None for section in sections)
    return (*path, NAME) if chooses else path


def _put(tree: Tree, path: Key, value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _leaves(tree: Mapping[str, Any], known: Iterable[Key], at: Key = ()) -> Iterator[tuple[Key, Any]]:
    """The options in a layer with their paths; a part's name may stand for its mapping."""
    groups = {path[:length] for path in known for length in range(1, len(path))}
    for key, value in tree.items():
        path = (*at, str(key))
        if path in groups and isinstance(value, Mapping):
            yield from _leaves(value, known, path)
        elif path in groups and value is None:
            continue  # `rmse:` alone is a term with its defaults
        elif (*path, NAME) in known and isinstance(value, str):
            yield (*path, NAME), value
        else:
            yield path, value
