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

VECTOR: Mapping[str, Any] = MappingProxyType(
    {
        "backbone": {"name": "auto", "node": "broad"},
        "head": "gaussian",
        "decoder": "residual",
        "objective": "gaussian_nll,kl",
        "optimizer": {"name": "adamw", "learning_rate": 1e-3, "clip": 1.0, "schedule": "cosine"},
    }
)
"""A latent vector for what comes after: neighbours, probes, interpolation; the likelihood's scale is calibrated to the
data, so that the latents hold as much as the decoder can use."""

SHARP: Mapping[str, Any] = MappingProxyType(
    {
        "backbone": {"name": "auto", "node": "fine"},
        "head": {"name": "spatial", "latent_dim": 16},
        "decoder": {"name": "residual", "width": 128},
        "objective": {"l1": {}, "features": {"weight": 0.3, "start_share": 0.5}, "kl": {"weight": 1e-6}},
        "optimizer": {
            "name": "adamw",
            "learning_rate": 1e-3,
            "betas": (0.9, 0.95),
            "clip": 1.0,
            "schedule": "cosine",
        },
    }
)
"""Sharp pictures: a latent map from early nodes, absolute error, from the second half on the error of the encoder's own
features, which takes several times as long, and a light KL."""

SHARP_GAN: Mapping[str, Any] = MappingProxyType(
    {
        **SHARP,
        "objective": {
            "l1": {},
            "features": {"weight": 0.3, "start_share": 0.5},
            "adversarial": {"weight": 0.5, "start_share": 0.5, "discriminator_start_share": 0.4},
            "kl": {"weight": 1e-6},
        },
    }
)
"""`sharp`, and from the second half of the run on a discriminator on the encoder's own features."""

RAE: Mapping[str, Any] = MappingProxyType(
    {
        "backbone": {"name": "timm:vit_base_patch14_reg4_dinov2.lvd142m", "norm": True},
        "head": {"name": "deterministic", "tau": 0.8},
        "decoder": "vit",
        "objective": {
            "l1": {"weight": 1.0},
            "perceptual": {"weight": 1.0, "network": "vgg"},
            "adversarial": {
                "weight": 0.75,
                "start_epoch": 8,
                "discriminator_start_epoch": 6,
                "discriminator": "features",
                "network": "timm:vit_small_patch8_224.dino",
                "nodes": ["blocks.2", "blocks.5", "blocks.8", "blocks.11", "norm"],
                "image_size": 224,
                "loss": "hinge",
                "adaptive": True,
                "augment": True,
                "rounded": True,
                "fresh": True,
                "learning_rate": 2e-4,
                "betas": (0.9, 0.95),
            },
        },
        "optimizer": {
            "name": "adamw",
            "learning_rate": 2e-4,
            "min_learning_rate": 2e-5,
            "betas": (0.9, 0.95),
            "weight_decay": 0.0,
            "schedule": "cosine",
            "warmup_epochs": 1.0,
            "ema": 0.9978,
        },
        "dataset": {"batch_size": 512},
        "epochs": 16,
    }
)
"""The decoder of a representation autoencoder as its authors train it (Zheng et al. 2025): features of a vision
transformer with noise as latents, absolute error, LPIPS, and a discriminator on DINO's features."""

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"seed": SEED, "vector": VECTOR, "sharp": SHARP, "sharp-gan": SHARP_GAN, "rae": RAE}
)
"""Recipes by name: backbone, head, decoder, objective and optimizer; some also epochs and options of the data set."""

VECTOR_HEADS = ("gaussian", "pooled")


def read_recipe(name: str) -> Mapping[str, Any]:
    """The defaults of a recipe.

    Raises:
        UnknownNameError: For a name that is not in `RECIPES`.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise UnknownNameError("recipe", str(name), RECIPES)
    return RECIPES[name]


def choose_recipe(name: str | None, head: str | None) -> tuple[str, str]:
    """The recipe of a name; without one, the default for a head.

    Args:
        name: As the user gives it.
        head: Name of the head that the user has chosen, if any.

    Returns:
        The recipe's name, and why it was chosen, or "".

    Raises:
        UnknownNameError: For a name that is not in `RECIPES`.
    """
    if name is not None:
        read_recipe(name)
        return name, ""
    if head in VECTOR_HEADS:
        return "vector", f"the default for latent vectors, as the head {head} gives them"
    return "sharp", "the default for pictures"


def part_of(recipe: Mapping[str, Any], kind: str, given: Any = None) -> Any:
    """A part of a model: the one that is given, or else the recipe's, with its options.

    A part of the same name takes the recipe's options beneath its own. So does any backbone, which is then read where
    the recipe reads it, since that suits any network.

    Args:
        recipe: As `read_recipe` gives it.
        kind: "backbone", "head" or "decoder".
        given: A name, spec or mapping; None for the recipe's.
    """
    default = Spec.parse(recipe[kind], kind)
    if given is None:
        return default
    if not isinstance(given, str | Spec | Mapping):
        return given
    spec = Spec.parse(given, kind)
    if kind != "backbone" and spec.name != default.name:
        return given
    return Spec(spec.name, **{**default.options, **spec.options})


def options_beneath(recipe: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's options of the parts and terms that are chosen, as a tree beneath what a user gives.

    Args:
        recipe: As `read_recipe` gives it.
        chosen: Names of the parts by kind, and `objective`, the names of the terms.
    """
    tree: dict[str, Any] = {name: dict(recipe[name]) for name in ("optimizer", "dataset") if name in recipe}
    if "epochs" in recipe:
        tree["epochs"] = recipe["epochs"]
    for kind in ("backbone", "head", "decoder"):
        spec = Spec.parse(recipe[kind], kind)
        if kind == "backbone" or chosen[kind] == spec.name:
            tree[kind] = dict(spec.options)
    if isinstance(recipe["objective"], Mapping):
        tree["objective"] = {
            term: dict(options) for term, options in recipe["objective"].items() if term in chosen["objective"]
        }
    return tree
