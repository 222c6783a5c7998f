"""Faces drawn with Pillow: endless, deterministic, with their generating factors and part masks."""

import colorsys
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from transfervae.data.dataset import ImageDataset, ItemRecord
from transfervae.data.image_file import check_image_dtype, to_tensor
from transfervae.shapes import check_positive, check_seed, parse_image_size

Point: TypeAlias = tuple[float, float]
Color: TypeAlias = tuple[int, int, int]

PARTS = ("background", "hair", "skin", "eyes", "brows", "mouth")
"""Parts of a face; every pixel belongs to exactly one."""

MOST_FACES = 10**9
OVERSAMPLING = 3
OUTLINE_POINTS = 40
SKIN_TONES: tuple[Color, ...] = ((253, 222, 200), (236, 188, 150), (198, 134, 94), (142, 88, 58), (84, 52, 38))
HAIR_TONES: tuple[Color, ...] = ((24, 20, 22), (74, 46, 30), (140, 82, 42), (214, 172, 100), (196, 194, 192))
IRIS_TONES: tuple[Color, ...] = ((70, 44, 28), (112, 82, 40), (84, 120, 70), (74, 118, 168))
LIP_TONES: tuple[Color, ...] = ((196, 92, 96), (150, 62, 66), (112, 56, 52))


@dataclass(frozen=True)
class ToyFaceFactors:
    """What a face is drawn from. Lengths are in units of the picture's shorter side, angles in radians."""

    skin_tone: float
    hair_tone: float
    hair_length: float
    hair_volume: float
    face_width: float
    face_height: float
    jaw: float
    eye_distance: float
    eye_size: float
    eye_openness: float
    gaze_x: float
    gaze_y: float
    iris_tone: float
    brow_height: float
    brow_angle: float
    brow_thickness: float
    nose_length: float
    mouth_width: float
    mouth_openness: float
    smile: float
    lip_tone: float
    glasses: float
    light_angle: float
    light_strength: float
    brightness: float
    background_hue: float
    background_lightness: float
    yaw: float
    tilt: float
    scale: float
    shift_x: float
    shift_y: float

    @property
    def wears_glasses(self) -> bool:
        """Whether glasses are drawn: `glasses` above 0.7."""
        return self.glasses > 0.7


RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "skin_tone": (0, 1),
        "hair_tone": (0, 1),
        "hair_length": (0, 1),
        "hair_volume": (0.02, 0.09),
        "face_width": (0.22, 0.29),
        "face_height": (0.3, 0.37),
        "jaw": (0.65, 1),
        "eye_distance": (0.095, 0.13),
        "eye_size": (0.05, 0.07),
        "eye_openness": (0.15, 1),
        "gaze_x": (-1, 1),
        "gaze_y": (-1, 1),
        "iris_tone": (0, 1),
        "brow_height": (0.07, 0.11),
        "brow_angle": (-0.35, 0.35),
        "brow_thickness": (0.008, 0.022),
        "nose_length": (0.07, 0.11),
        "mouth_width": (0.07, 0.13),
        "mouth_openness": (0, 1),
        "smile": (-0.6, 1),
        "lip_tone": (0, 1),
        "glasses": (0, 1),
        "light_angle": (-math.pi, math.pi),
        "light_strength": (0, 0.45),
        "brightness": (0.75, 1.1),
        "background_hue": (0, 1),
        "background_lightness": (0.15, 0.85),
        "yaw": (-0.045, 0.045),
        "tilt": (-0.22, 0.22),
        "scale": (0.9, 1.15),
        "shift_x": (-0.04, 0.04),
        "shift_y": (-0.03, 0.04),
    }
)
"""Each factor's range; factors are drawn uniformly and independently."""


class ToyFace(NamedTuple):
    """One drawn face.

    Attributes:
        image: RGB in [0, 1], `[3, h, w]`.
        factors: What it was drawn from.
        masks: One mask `[h, w]` a part; they cover every pixel once.
    """

    image: Float[Tensor, "3 h w"]
    factors: ToyFaceFactors
    masks: dict[str, Bool[Tensor, "h w"]]


class ToyFaces(ImageDataset):
    """Drawn faces, the same for the same (seed, index) on every machine.

    Items are RGB `[3, h, w]`, float32 in [0, 1] or uint8.

    Attributes:
        count: Number of faces.
        image_size: (height, width).
        seed: Selects the faces.
        dtype: Type of the items.
    """

    def __init__(
        self,
        count: int = 2000,
        image_size: int | Sequence[int] = 128,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make a set; nothing is drawn yet.

        Args:
            count: Number of faces, from 1 to 10^9.
            image_size: Height and width in pixels, or one number; any size.
            seed: At least 0.
            dtype: `torch.float32` for values in [0, 1], or `torch.uint8` for these times 255, rounded.

        Raises:
            InvalidOptionError: If `count` is below 1, `seed` no whole number from 0 to 2^63 - 1, or `dtype` neither
                of the two.
            ImageSizeError: If `image_size` is not one or two positive numbers.
        """
        check_positive(count=count, at_most=MOST_FACES)
        check_seed(seed)
        check_image_dtype(dtype)
        self.count = count
        self.image_size = parse_image_size(image_size)
        self.seed = seed
        self.dtype = dtype

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Float[Tensor, "3 h w"] | UInt8[Tensor, "3 h w"]:
        image = self.face(index).image
        return (image * 255).round().to(torch.uint8) if self.dtype == torch.uint8 else image

    @property
    def identity(self) -> dict[str, object]:
        """What the faces are drawn from, in plain values."""
        return {"kind": "toyfaces", "count": self.count, "image_size": list(self.image_size), "seed": self.seed}

    def name_of(self, index: int) -> str:
        """Name of a face, counted from 0."""
        return f"face {self._place(index)}"

    def describe_item(self, index: int) -> ItemRecord:
        """The name of a face, counted from 0; there is no file.

        Raises:
            IndexError: If `index` is not within the set.
        """
        return ItemRecord(f"face {self._place(index)}", 0, 0)

    def factors(self, index: int) -> ToyFaceFactors:
        """The factors of one face.

        Raises:
            IndexError: If `index` is not within the set.
        """
        draws = np.random.default_rng([self.seed, self._place(index)]).random(len(RANGES))
        pairs = zip(RANGES.items(), draws.tolist(), strict=True)
        return ToyFaceFactors(**{name: low + (high - low) * draw for (name, (low, high)), draw in pairs})

    def face(self, index: int) -> ToyFace:
        """One face with its factors and masks.

        Raises:
            IndexError: If `index` is not within the set.
        """
        factors = self.factors(index)
        return draw_face(factors, self.image_size)

    def _place(self, index: int) -> int:
        if not -self.count <= index < self.count:
            raise IndexError(f"index {index} is out of range for {self.count} faces")
        return index % self.count


def draw_face(factors: ToyFaceFactors, image_size: int | Sequence[int]) -> ToyFace:
    """Draw one face.

    Args:
        factors: What to draw; values outside `RANGES` are drawn as they are.
        image_size: Height and width in pixels, or one number.

    Returns:
        Image, factors and masks.
    """
    canvas = _Canvas(factors, parse_image_size(image_size))
    _draw_back_hair(canvas, factors)
    _draw_head(canvas, factors)
    for side in (-1, 1):
        _draw_eye(canvas, factors, side)
    _draw_nose(canvas, factors)
    _draw_mouth(canvas, factors)
    _draw_front_hair(canvas, factors)
    if factors.wears_glasses:
        _draw_glasses(canvas, factors)
    return ToyFace(canvas.picture(factors), factors, canvas.masks())


class _Canvas:
    """A colour picture and a picture of part numbers, drawn with the same outlines.

    Coordinates are relative to the face's centre, in units of the shorter side, y downwards; the canvas tilts, scales
    and shifts them.
    """

    def __init__(self, factors: ToyFaceFactors, size: tuple[int, int]) -> None:
        height, width = size
        self.size = (width, height)
        large = (width * OVERSAMPLING, height * OVERSAMPLING)
        unit = min(large)
        self._scale = unit * factors.scale
        self._origin = (large[0] / 2 + factors.shift_x * unit, large[1] * 0.52 + factors.shift_y * unit)
        self._cos, self._sin = math.cos(factors.tilt), math.sin(factors.tilt)
        self._colors = Image.new("RGB", large, _background(factors))
        self._parts = Image.new("L", large, PARTS.index("background"))
        self._color_pen = ImageDraw.Draw(self._colors)
        self._part_pen = ImageDraw.Draw(self._parts)

    def fill(self, outline: Iterable[Point], color: Color, part: str | None) -> None:
        """Fill an outline; without a part, what lies below keeps its mask."""
        pixels = [self._to_pixel(point) for point in outline]
        self._color_pen.polygon(pixels, fill=color)
        if part is not None:
            self._part_pen.polygon(pixels, fill=PARTS.index(part))

    def stroke(self, line: Iterable[Point], color: Color, thickness: float, part: str | None = None) -> None:
        """Draw a line of a thickness in face units."""
        pixels = [self._to_pixel(point) for point in line]
        width = max(1, round(thickness * self._scale))
        self._color_pen.line(pixels, fill=color, width=width, joint="curve")
        if part is not None:
            self._part_pen.line(pixels, fill=PARTS.index(part), width=width, joint="curve")

    def picture(self, factors: ToyFaceFactors) -> Float[Tensor, "3 h w"]:
        """The lit picture at its final size."""
        image = to_tensor(self._colors.resize(self.size, Image.Resampling.BOX))
        width, height = self.size
        y = torch.linspace(-1, 1, height).view(-1, 1)
        x = torch.linspace(-1, 1, width)
        slope = x * math.cos(factors.light_angle) + y * math.sin(factors.light_angle)
        return (image * factors.brightness * (1 + factors.light_strength * slope)).clamp(0, 1)

    def masks(self) -> dict[str, Bool[Tensor, "h w"]]:
        """One mask a part."""
        parts = torch.from_numpy(np.array(self._parts.resize(self.size, Image.Resampling.NEAREST)))
        return {name: parts == number for number, name in enumerate(PARTS)}

    def _to_pixel(self, point: Point) -> Point:
        x, y = point[0] * self._scale, point[1] * self._scale
        return self._origin[0] + self._cos * x - self._sin * y, self._origin[1] + self._sin * x + self._cos * y


def _draw_back_hair(canvas: _Canvas, factors: ToyFaceFactors) -> None:
    color = _shade(_blend(HAIR_TONES, factors.hair_tone), 0.8)
    radius_x = factors.face_width + factors.hair_volume
    top = -factors.face_height - factors.hair_volume
    bottom = -0.05 + factors.hair_length * 0.5
    crown = _ellipse(0.0, -0.05, radius_x, -top - 0.05, math.pi, 2 * math.pi)
    canvas.fill([*crown, (radius_x * 0.95, bottom), (-radius_x * 0.95, bottom)], color, "hair")


def _draw_head(canvas: _Canvas, factors: ToyFaceFactors) -> None:
    skin = _blend(SKIN_TONES, factors.skin_tone)
    neck = factors.face_width * 0.45
    canvas.fill([(-neck, 0.2), (neck, 0.2), (neck, 0.5), (-neck, 0.5)], _shade(skin, 0.82), "skin")
    clothes = _hue(factors.background_hue + 0.45, 0.4)
    canvas.fill(_ellipse(0.0, 0.62, 0.42, 0.2, math.pi, 2 * math.pi), clothes, "background")
    for side in (-1, 1):
        ear = side * factors.face_width + factors.yaw
        canvas.fill(_ellipse(ear, 0.01, 0.03, 0.055), _shade(skin, 0.9), "skin")
    width, height = factors.face_width, factors.face_height
    upper = _ellipse(0.0, 0.0, width, height, math.pi, 2 * math.pi)
    lower = [(x * _jaw(y / height, factors.jaw), y) for x, y in _ellipse(0.0, 0.0, width, height, 0.0, math.pi)]
    canvas.fill([*upper, *lower], skin, "skin")


def _draw_eye(canvas: _Canvas, factors: ToyFaceFactors, side: int) -> None:
    x, y = _eye_centre(factors, side)
    width, height = factors.eye_size, factors.eye_size * 0.75 * factors.eye_openness
    canvas.fill(_ellipse(x, y, width, height), (246, 244, 240), "eyes")
    iris = min(height, width * 0.5)
    iris_x = x + factors.gaze_x * width * 0.4
    iris_y = y + factors.gaze_y * max(0.0, height - iris * 0.6) * 0.5
    visible = [(px, min(max(py, y - height), y + height)) for px, py in _ellipse(iris_x, iris_y, *[width * 0.5] * 2)]
    canvas.fill(visible, _blend(IRIS_TONES, factors.iris_tone), "eyes")
    pupil = width * 0.24
    visible = [(px, min(max(py, y - height), y + height)) for px, py in _ellipse(iris_x, iris_y, pupil, pupil)]
    canvas.fill(visible, (14, 12, 14), "eyes")
    lid = _shade(_blend(SKIN_TONES, factors.skin_tone), 0.5)
    canvas.stroke(_ellipse(x, y, width, height, math.pi, 2 * math.pi), lid, 0.009)
    _draw_brow(canvas, factors, side)


def _draw_brow(canvas: _Canvas, factors: ToyFaceFactors, side: int) -> None:
    x, y = _eye_centre(factors, side)
    half = factors.eye_size * 1.15
    slope = side * factors.brow_angle
    line = [
        (x + t * half, y - factors.brow_height + t * half * slope - 0.015 * (1 - t * t)) for t in _grid(-1.0, 1.0, 9)
    ]
    color = _shade(_blend(HAIR_TONES, factors.hair_tone), 0.75)
    canvas.stroke(line, color, factors.brow_thickness, "brows")


def _draw_nose(canvas: _Canvas, factors: ToyFaceFactors) -> None:
    shadow = _shade(_blend(SKIN_TONES, factors.skin_tone), 0.78)
    x = factors.yaw * 1.5
    tip = -0.02 + factors.nose_length
    canvas.fill([(x * 0.8, -0.02), (x + 0.03, tip), (x - 0.03, tip)], _shade(shadow, 1.12), "skin")
    canvas.stroke([(x - 0.03, tip), (x, tip + 0.01), (x + 0.03, tip)], shadow, 0.01)


def _draw_mouth(canvas: _Canvas, factors: ToyFaceFactors) -> None:
    x, y = factors.yaw, factors.face_height * 0.58
    half = factors.mouth_width
    bend = 0.045 * factors.smile
    opening = 0.012 + 0.05 * factors.mouth_openness
    upper = [(x + t * half, y - bend * t * t - 0.012 * (1 - t * t)) for t in _grid(-1.0, 1.0, 17)]
    lower = [(x + t * half, y - bend * t * t + opening * (1 - t * t)) for t in _grid(1.0, -1.0, 17)]
    lips = _blend(LIP_TONES, factors.lip_tone)
    canvas.fill([*upper, *lower], lips, "mouth")
    if factors.mouth_openness > 0.3:
        inner = [(x + (px - x) * 0.8, y + (py - y) * 0.6) for px, py in [*upper, *lower]]
        canvas.fill(inner, (70, 20, 24), "mouth")
    canvas.stroke(upper, _shade(lips, 0.7), 0.006, "mouth")


def _draw_front_hair(canvas: _Canvas, factors: ToyFaceFactors) -> None:
    width, height = factors.face_width * 1.02, factors.face_height + factors.hair_volume
    crown = _ellipse(0.0, 0.0, width + factors.hair_volume * 0.5, height, math.pi * 1.06, math.pi * 1.94)
    fringe = [(t * width, -factors.face_height * (0.72 - 0.3 * t * t)) for t in _grid(1.0, -1.0, 13)]
    canvas.fill([*crown, *fringe], _blend(HAIR_TONES, factors.hair_tone), "hair")


def _draw_glasses(canvas: _Canvas, factors: ToyFaceFactors) -> None:
    frame = (36, 34, 40)
    radius = factors.eye_size * 1.35
    for side in (-1, 1):
        x, y = _eye_centre(factors, side)
        rim = _ellipse(x, y, radius, radius * 0.85)
        canvas.stroke([*rim, rim[0]], frame, 0.011)
        canvas.stroke([(x + side * radius, y), (factors.yaw + side * factors.face_width, y - 0.01)], frame, 0.011)
    (left, y), (right, _) = _eye_centre(factors, -1), _eye_centre(factors, 1)
    canvas.stroke([(left + radius, y), (right - radius, y)], frame, 0.011)


def _eye_centre(factors: ToyFaceFactors, side: int) -> Point:
    return side * factors.eye_distance + factors.yaw, -0.04


def _jaw(depth: float, jaw: float) -> float:
    """How far the face narrows at a depth from the ears (0) to the chin (1)."""
    return 1 - (1 - jaw) * depth


def _ellipse(
    x: float, y: float, radius_x: float, radius_y: float, start: float = 0.0, end: float = 2 * math.pi
) -> list[Point]:
    angles = _grid(start, end, OUTLINE_POINTS)
    return [(x + radius_x * math.cos(angle), y + radius_y * math.sin(angle)) for angle in angles]


def _grid(start: float, end: float, count: int) -> list[float]:
    return [start + (end - start) * i / (count - 1) for i in range(count)]


def _blend(tones: Sequence[Color], position: float) -> Color:
    """The colour at a position from the first tone (0) to the last (1)."""
    place = min(max(position, 0.0), 1.0) * (len(tones) - 1)
    lower = min(int(place), len(tones) - 2)
    weight = place - lower
    red, green, blue = (round(a + (b - a) * weight) for a, b in zip(tones[lower], tones[lower + 1], strict=True))
    return red, green, blue


def _shade(color: Color, factor: float) -> Color:
    red, green, blue = (min(255, round(value * factor)) for value in color)
    return red, green, blue


def _hue(hue: float, lightness: float) -> Color:
    red, green, blue = (round(255 * value) for value in colorsys.hls_to_rgb(hue % 1, lightness, 0.35))
    return red, green, blue


def _background(factors: ToyFaceFactors) -> Color:
    return _hue(factors.background_hue, factors.background_lightness)
