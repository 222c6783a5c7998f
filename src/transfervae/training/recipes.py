"""Recipes: named sets of defaults for a run, each of which can be overridden."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transfervae.errors import UnknownNameError

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

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType({"seed": SEED})
"""Recipes by name: backbone, head, decoder, objective and optimizer."""


def read_recipe(name: str) -> Mapping[str, Any]:
    """The defaults of a recipe.

    Raises:
        UnknownNameError: For a name that is not in `RECIPES`.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise UnknownNameError("recipe", str(name), RECIPES)
    return RECIPES[name]
