"""Recipes: named sets of defaults for a run, each of which can be overridden."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transfervae.errors import UnknownNameError
from transfervae.options import Spec

SEED: Mapping[str, Any] = MappingProxyType(
    {
        "backbone": "auto",
        "head": "gaussian",
        "decoder": "resize",
        "objective": "rmse,kl",
        "optimizer": {"name": "adam", "learning_rate": 1e-3, "schedule": "cosine"},
    }
)
"""The experiment that the library grew from: frozen VGG19, a latent vector, RMSE + KL."""

SHARP: Mapping[str, Any] = MappingProxyType(
    {
        "backbone": {"name": "auto", "node": "fine"},
        "head": {"name": "spatial", "latent_dim": 16},
        "decoder": {"name": "resize", "width": 256},
        "objective": {"l1": {}, "features": {"weight": 0.1}, "kl": {"weight": 1e-6}},
        "optimizer": {
            "name": "adamw",
            "learning_rate": 1e-3,
            "betas": (0.9, 0.95),
            "clip": 1.0,
            "schedule": "cosine",
        },
    }
)
"""Sharp pictures: a latent map from early nodes, absolute error and the error of the encoder's own features, a light
KL."""

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType({"seed": SEED, "sharp": SHARP})
"""Recipes by name: backbone, head, decoder, objective and optimizer."""


def read_recipe(name: str) -> Mapping[str, Any]:
    """The defaults of a recipe.

    Raises:
        UnknownNameError: For a name that is not in `RECIPES`.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise UnknownNameError("recipe", str(name), RECIPES)
    return RECIPES[name]


def part_of(recipe: Mapping[str, Any], kind: str, given: Any = None) -> Any:
    """A part of a model: the one that is given, or else the recipe's, with its options.

    A backbone that is given without a node is read where the recipe reads it, since that suits any network.

    Args:
        recipe: As `read_recipe` gives it.
        kind: "backbone", "head" or "decoder".
        given: A name, spec or mapping; None for the recipe's.
    """
    default = Spec.parse(recipe[kind], kind)
    if given is None:
        return default
    if kind != "backbone" or not isinstance(given, str | Spec | Mapping):
        return given
    spec = Spec.parse(given, kind)
    return Spec(spec.name, **{**default.options, **spec.options})


def options_beneath(recipe: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's options of the parts and terms that are chosen, as a tree beneath what a user gives.

    Args:
        recipe: As `read_recipe` gives it.
        chosen: Names of the parts by kind, and `objective`, the names of the terms.
    """
    tree: dict[str, Any] = {"optimizer": dict(recipe["optimizer"])}
    for kind in ("backbone", "head", "decoder"):
        spec = Spec.parse(recipe[kind], kind)
        if kind == "backbone" or chosen[kind] == spec.name:
            tree[kind] = dict(spec.options)
    if isinstance(recipe["objective"], Mapping):
        tree["objective"] = {
            term: dict(options) for term, options in recipe["objective"].items() if term in chosen["objective"]
        }
    return tree
