"""Generated pictures with captions: coloured shapes, from which `demo/clip` learns and on which it is tested.

A `Scene` is what a picture shows, and `Scene.draw(seed)` is one picture of it: the same scene and seed give the same
pixels. Seeds for training and for tests are from two ranges that do not overlap, so no picture of a test was used for
training.
"""

from __future__ import annotations

import io
import math
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

TRAINING_SEEDS = range(1_000_000)
EVALUATION_SEEDS = range(1_000_000, 2_000_000)

SIDE = 256  # the shorter side of every picture; everything that a caption names lies in the central square
LONGER_SIDE = 320
OVERSAMPLING = 2  # shapes are drawn this much larger and averaged down: that is the anti-aliasing

Point = tuple[float, float]
Colour = tuple[int, int, int]

# Some of these differ in brightness only (brown and orange; black, grey and white). So vectors show it when a mean or a
# standard deviation is wrong, and not only when channels are swapped.
COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (245, 135, 30),
    "yellow": (250, 215, 50),
    "green": (50, 160, 70),
    "turquoise": (60, 205, 200),
    "blue": (40, 80, 205),
    "purple": (130, 60, 170),
    "pink": (245, 150, 190),
    "brown": (120, 75, 40),
    "black": (25, 25, 28),
    "grey": (128, 130, 134),
    "white": (245, 245, 242),
}
LEAST_CONTRAST = 100.0  # distance in RGB between a shape and what it lies on
ADJECTIVES = {"circle": "round", "square": "square", "triangle": "triangular"}
TEXTURES = ("plain", "striped", "spotted")
RADII: dict[str, tuple[float, float]] = {"small": (0.12, 0.15), "medium": (0.22, 0.26), "large": (0.35, 0.39)}
CORNERS: dict[str, Point] = {
    "top left": (0.23, 0.23),
    "top right": (0.77, 0.23),
    "bottom left": (0.23, 0.77),
    "bottom right": (0.77, 0.77),
}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
ROWS: dict[int, tuple[Point, ...]] = {
    2: ((0.28, 0.5), (0.72, 0.5)),
    3: ((0.5, 0.28), (0.27, 0.7), (0.73, 0.7)),
    4: ((0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72)),
}
# A relation, its opposite, and where the first and the second thing lie.
RELATIONS: dict[str, tuple[str, Point, Point]] = {
    "above": ("below", (0.5, 0.27), (0.5, 0.73)),
    "to the left of": ("to the right of", (0.27, 0.5), (0.73, 0.5)),
}


def _polar(radius_at: np.ndarray) -> list[Point]:
    """The polygon with corners at these distances from the origin and equal angles, from the top on."""
    angles = np.linspace(0.0, 2.0 * math.pi, len(radius_at), endpoint=False)
    points = zip(radius_at * np.sin(angles), -radius_at * np.cos(angles), strict=True)
    return [(float(x), float(y)) for x, y in points]


def _round(radius: float, x: float = 0.0) -> list[Point]:
    return [(px + x, py) for px, py in _polar(np.full(60, radius))]


def _heart() -> list[Point]:
    t = np.linspace(0.0, 2.0 * math.pi, 60, endpoint=False)
    x = 16.0 * np.sin(t) ** 3
    y = 13.0 * np.cos(t) - 5.0 * np.cos(2 * t) - 2.0 * np.cos(3 * t) - np.cos(4 * t)
    return [(float(a) / 17.0, float(-b - 2.5) / 17.0) for a, b in zip(x, y, strict=True)]


def _cross(arm: float = 0.32) -> list[Point]:
    turns = [[(-arm, -1.0), (arm, -1.0), (arm, -arm)]]
    for _ in range(3):
        turns.append([(-y, x) for x, y in turns[-1]])
    return [point for turn in turns for point in turn]


# Every shape fits the unit circle: its outline, and the outline of the hole in it if it has one.
SHAPES: dict[str, tuple[list[Point], list[Point]]] = {
    "circle": (_round(0.95), []),
    "square": ([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)], []),
    "triangle": ([(0.0, -0.95), (0.95, 0.75), (-0.95, 0.75)], []),
    "star": (_polar(np.tile([1.0, 0.42], 5)), []),
    "heart": (_heart(), []),
    "ring": (_round(0.95), _round(0.55)),
    "cross": (_cross(), []),
    "moon": (_round(0.95), _round(0.8, x=0.45)),
    "diamond": ([(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)], []),
    "flower": (
        _polar(0.7 + 0.3 * np.cos(6.0 * np.linspace(0.0, 2.0 * math.pi, 120, endpoint=False))),
        _round(0.2),
    ),
}


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Thing:
    """A shape with its colour and surface."""

    shape: str
    colour: str
    texture: str = "plain"

    @property
    def words(self) -> str:
        """Its name without an article: "striped red circle"."""
        return (
            f"{self.colour} {self.shape}" if self.texture == "plain" else f"{self.texture} {self.colour} {self.shape}"
        )


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one thing, `count` equal ones, or two things in a relation.

    Args:
        thing: the first or only thing.
        background: a name of COLOURS.
        size: a name of RADII, of a single thing.
        corner: a name of CORNERS, of a single thing; None is the middle.
        count: of equal things.
        relation: a name of RELATIONS: where `thing` is, seen from `other`.
        other: the second thing.
    """

    thing: Thing
    background: str
    size: str = "medium"
    corner: str | None = None
    count: int = 1
    relation: str | None = None
    other: Thing | None = None

    @property
    def subject(self) -> str:
        """What the picture shows, without its background: "a small striped red circle"."""
        if self.other is not None:
            return f"{_with_article(self.thing.words)} {self.relation} {_with_article(self.other.words)}"
        if self.count > 1:
            return f"{NUMBERS[self.count]} {self.thing.words}{'es' if self.thing.shape == 'cross' else 's'}"
        return _with_article(self.thing.words if self.size == "medium" else f"{self.size} {self.thing.words}")

    @property
    def caption(self) -> str:
        """The full description. Different scenes have different captions."""
        place = f" in the {self.corner} corner of" if self.corner else " on"
        return f"{self.subject}{place} {_with_article(self.background)} background"

    def paraphrase(self, rng: np.random.Generator) -> str:
        """Another description. Some leave details out, as queries of people do."""
        choices = [
            f"{self.subject}, {self.background} background",
            f"{_with_article(self.background)} background with {self.subject}",
            f"a picture of {self.subject} on {self.background}",
            f"{self.subject} on {self.background}",
            self.subject,
            f"a photo of {self.subject}",
        ]
        if self.other is not None and self.relation is not None:
            opposite = RELATIONS[self.relation][0]
            swapped = f"{_with_article(self.other.words)} {opposite} {_with_article(self.thing.words)}"
            choices += [f"{swapped} on {_with_article(self.background)} background", swapped]
            choices += [f"{_with_article(self.thing.words)} and {_with_article(self.other.words)}"]
        elif self.count == 1:
            choices += [self.thing.words]
            adjective = ADJECTIVES.get(self.thing.shape)
            if adjective:
                choices += [f"something {adjective} and {self.thing.colour}"]
        return choices[int(rng.integers(len(choices)))]

    def draw(self, seed: int) -> Image.Image:
        """The picture: RGB, 256 pixels on its shorter side and up to 320 on the other.

        The seed determines the canvas, the exact position, size, angle and tint, the light and the noise. Different
        scenes differ in these even if their seeds are the same.
        """
        rng = np.random.default_rng([seed, zlib.crc32(self.caption.encode())])
        width, height = ((SIDE, SIDE), (LONGER_SIDE, SIDE), (SIDE, LONGER_SIDE))[rng.integers(3)]
        picture = Image.new("RGB", (width, height), _tinted(COLOURS[self.background], rng))
        for thing, (x, y), radius in self._placed(rng):
            centre = ((width - SIDE) / 2 + x * SIDE, (height - SIDE) / 2 + y * SIDE)
            _paint(picture, thing, centre, radius * SIDE, rng)
        return _lit(picture, rng)

    def _placed(self, rng: np.random.Generator) -> list[tuple[Thing, Point, float]]:
        """Every thing with its centre and radius, both as fractions of the central square."""
        if self.other is not None and self.relation is not None:
            _, first, second = RELATIONS[self.relation]
            placed = [
                (self.thing, first, rng.uniform(0.17, 0.21)),
                (self.other, second, rng.uniform(0.17, 0.21)),
            ]
        elif self.count > 1:
            radius = rng.uniform(0.15, 0.18)
            placed = [(self.thing, centre, radius) for centre in ROWS[self.count]]
        else:
            middle = CORNERS[self.corner] if self.corner else (0.5, 0.5)
            placed = [(self.thing, middle, rng.uniform(*RADII[self.size]))]
        jitter = rng.uniform(-0.035, 0.035, size=(len(placed), 2))
        return [
            (thing, (x + float(dx), y + float(dy)), float(radius))
            for (thing, (x, y), radius), (dx, dy) in zip(placed, jitter, strict=True)
        ]


def scenes(count: int, seed: int) -> list[Scene]:
    """`count` scenes with distinct captions, the same for the same seed."""
    rng = np.random.default_rng(seed)
    found: dict[str, Scene] = {}
    while len(found) < count:
        scene = _any_scene(rng)
        found.setdefault(scene.caption, scene)
    return list(found.values())


def jpeg_bytes(picture: Image.Image, quality: int = 90) -> bytes:
    """The picture as a JPEG file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _choice(rng: np.random.Generator, options: list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _contrast(one: str, other: str) -> float:
    return math.dist(COLOURS[one], COLOURS[other])


def _any_thing(rng: np.random.Generator, background: str, textured: bool) -> Thing:
    colours = [name for name in COLOURS if _contrast(name, background) >= LEAST_CONTRAST]
    texture = _choice(rng, [*TEXTURES, "plain"]) if textured else "plain"
    return Thing(_choice(rng, list(SHAPES)), _choice(rng, colours), texture)


def _any_scene(rng: np.random.Generator) -> Scene:
    """Half of the scenes show one thing, a fifth several of the same, the others two things."""
    background = _choice(rng, list(COLOURS))
    kind = rng.random()
    if kind < 0.5:
        size = _choice(rng, list(RADII))
        # Stripes and spots on a small shape are lost at the model's 64 pixels; a large shape fills no corner.
        thing = _any_thing(rng, background, textured=size != "small")
        corner = _choice(rng, list(CORNERS)) if size == "small" and rng.random() < 0.7 else None
        return Scene(thing, background, size=size, corner=corner)
    if kind < 0.7:
        return Scene(_any_thing(rng, background, textured=False), background, count=int(rng.integers(2, 5)))
    thing = _any_thing(rng, background, textured=False)
    other = _any_thing(rng, background, textured=False)
    while other == thing:
        other = _any_thing(rng, background, textured=False)
    return Scene(thing, background, relation=_choice(rng, list(RELATIONS)), other=other)


def _tinted(colour: Colour, rng: np.random.Generator) -> Colour:
    red, green, blue = (int(v) for v in np.clip(np.array(colour) + rng.integers(-9, 10, size=3), 0, 255))
    return red, green, blue


def _second_tone(colour: Colour) -> Colour:
    """The colour of stripes and spots: lighter than a dark colour, darker than a bright one."""
    towards = 0 if sum(colour) > 380 else 255
    red, green, blue = (int(0.4 * v + 0.6 * towards) for v in colour)
    return red, green, blue


def _paint(picture: Image.Image, thing: Thing, centre: Point, radius: float, rng: np.random.Generator) -> None:
    """Draws the thing and its soft shadow onto the picture."""
    mask = _shape_mask(thing.shape, radius, turn=rng.uniform(-0.25, 0.25))
    colour = _tinted(COLOURS[thing.colour], rng)
    left, top = round(centre[0] - mask.width / 2), round(centre[1] - mask.height / 2)
    shadow = mask.filter(ImageFilter.BoxBlur(4)).point([v // 4 for v in range(256)])
    picture.paste((0, 0, 0), (left + 4, top + 5), shadow)
    picture.paste(colour, (left, top), mask)
    if thing.texture != "plain":
        pattern = _pattern_mask(thing.texture, mask.width, turn=rng.uniform(-0.5, 0.5))
        picture.paste(_second_tone(colour), (left, top), ImageChops.multiply(mask, pattern))


def _shape_mask(shape: str, radius: float, turn: float) -> Image.Image:
    """A square "L" image, 255 inside the shape, with a margin for its shadow's blur."""
    side = 2 * math.ceil(radius + 8)
    large = Image.new("L", (side * OVERSAMPLING, side * OVERSAMPLING), 0)
    pen = ImageDraw.Draw(large)
    outline, hole = SHAPES[shape]
    cos, sin = math.cos(turn) * radius, math.sin(turn) * radius
    for points, ink in ((outline, 255), (hole, 0)):
        if points:
            turned = [(side / 2 + x * cos - y * sin, side / 2 + x * sin + y * cos) for x, y in points]
            pen.polygon([(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in turned], fill=ink)
    return large.reduce(OVERSAMPLING)


def _pattern_mask(texture: str, side: int, turn: float) -> Image.Image:
    """A square "L" image, 255 where the second tone is drawn: slanted stripes, or spots on a grid."""
    period = 26.0  # six of the model's pixels
    y, x = np.mgrid[0:side, 0:side] * (2.0 * math.pi / period)
    along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    wave = np.sin(along) if texture == "striped" else np.cos(along) + np.cos(across) - 0.7
    return Image.fromarray((np.clip(0.5 + 3.0 * wave, 0.0, 1.0) * 255).astype(np.uint8))


def _lit(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture under light from one side (7 % brighter there, darker opposite) and with fine noise."""
    height, width = picture.height, picture.width
    angle = rng.uniform(0.0, 2.0 * math.pi)
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    light = 1.0 + np.float32(0.07) * (x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle)))
    noise = rng.integers(-5, 6, size=(height, width), dtype=np.int8)
    pixels = np.asarray(picture, dtype=np.float32) * light[..., None] + noise[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
