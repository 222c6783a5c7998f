"""Configurations of diffusers' `AutoencoderRAE`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from transfervae.errors import CheckpointError, InvalidOptionError, UnknownNameError

MODEL_CLASS = "AutoencoderRAE"
HEAD_WIDTH = 64


class Kind(NamedTuple):
    """The differences between the three types of encoders.

    Attributes:
        native_size: Side of the images that its position embedding was trained for, in pixels.
        class_token: Whether it has one.
        registers: Number of register tokens.
        layer_scale: Whether its blocks' branches are scaled channel by channel.
        tanh: Whether its GELU is the approximation by a hyperbolic tangent.
        epsilon: Of its layer normalisations.
        antialias: Whether its position embedding is resampled with antialiasing.
        mlp_width: Channels inside a block's perceptron; four times the width if None.
    """

    native_size: int
    class_token: bool
    registers: int
    layer_scale: bool
    tanh: bool
    epsilon: float
    antialias: bool
    mlp_width: int | None


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "dinov2": Kind(518, True, 4, True, False, 1e-6, True, None),
        "siglip2": Kind(256, False, 0, False, True, 1e-6, False, 3072),
        "mae": Kind(224, True, 0, False, False, 1e-12, False, 3072),
    }
)
"""Encoder types by the name that diffusers gives them."""


@dataclass(frozen=True)
class RAEConfig:
    """Configuration of diffusers' `AutoencoderRAE`, with its names and defaults."""

    encoder_type: str = "dinov2"
    encoder_hidden_size: int = 768
    encoder_patch_size: int = 14
    encoder_num_hidden_layers: int = 12
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    patch_size: int = 16
    encoder_input_size: int = 224
    num_channels: int = 3
    encoder_norm_mean: Sequence[float] | None = None
    encoder_norm_std: Sequence[float] | None = None
    latents_mean: Any = None
    latents_std: Any = None
    noise_tau: float = 0.0
    reshape_to_2d: bool = True
    scaling_factor: float = 1.0

    @staticmethod
    def parse(values: Mapping[str, Any]) -> "RAEConfig":
        """Read diffusers' configuration.

        Args:
            values: Of its `config.json`; names that mean nothing here are left out.

        Raises:
            CheckpointError: If it is the configuration of another class, or its numbers cannot be.
            UnknownNameError: For an encoder type that does not exist.
        """
        if values.get("_class_name", MODEL_CLASS) != MODEL_CLASS:
            raise CheckpointError(f"The configuration is one of {values['_class_name']}, not of {MODEL_CLASS}.")
        known = {field.name for field in fields(RAEConfig)}
        config = RAEConfig(**{name: value for name, value in values.items() if name in known})
        if config.encoder_type not in KINDS:
            raise UnknownNameError("encoder type", config.encoder_type, KINDS)
        config.check()
        return config

    def check(self) -> None:
        """Make sure that the numbers describe a model.

        Raises:
            CheckpointError: If not.
        """
        sizes = [field.name for field in fields(self) if field.type is int]
        self._refuse("a whole number above 0", [n for n in sizes if not _is_size(getattr(self, n))])
        numbers = [name for name in ("noise_tau", "scaling_factor") if not _is_amount(getattr(self, name))]
        self._refuse("a finite number of at least 0", numbers)
        self._refuse("above 0", [] if self.scaling_factor else ["scaling_factor"])
        self._refuse("3: only RGB can be read", [] if self.num_channels == 3 else ["num_channels"])
        for name, divisor in (("encoder_input_size", self.encoder_patch_size), ("encoder_hidden_size", HEAD_WIDTH)):
            self._refuse(f"a multiple of {divisor}", [name] if getattr(self, name) % divisor else [])

    def _refuse(self, wanted: str, wrong: Sequence[str]) -> None:
        if wrong:
            raise CheckpointError(f"The configuration's {wrong[0]} must be {wanted}, got {getattr(self, wrong[0])!r}.")

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return self.encoder_input_size // self.encoder_patch_size

    @property
    def side(self) -> int:
        """Height and width of the decoded images, in pixels."""
        return self.grid * self.patch_size


def normalisation(config: RAEConfig, state: Mapping[str, Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per RGB channel: of the tensors, or else of the configuration, or else ImageNet's.

    Raises:
        InvalidOptionError: If they are not three numbers each.
    """
    chosen = []
    for name, values, default in (
        ("encoder_mean", config.encoder_norm_mean, (0.485, 0.456, 0.406)),
        ("encoder_std", config.encoder_norm_std, (0.229, 0.224, 0.225)),
    ):
        numbers = state[name].flatten().tolist() if name in state else list(default if values is None else values)
        if len(numbers) != 3:
            raise InvalidOptionError(f"{name} must be three numbers, got {len(numbers)}.")
        chosen.append(numbers)
    return chosen[0], chosen[1]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < float("inf")
