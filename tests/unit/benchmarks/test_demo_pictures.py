"""The picture generator: equal input gives equal pixels, and every picture has its own caption."""

import io

import numpy as np
import pytest
from PIL import Image

from demo.pictures import (
    EVALUATION_SEEDS,
    LONGER_SIDE,
    RELATIONS,
    SHAPES,
    SIDE,
    TRAINING_SEEDS,
    Scene,
    Thing,
    jpeg_bytes,
    scenes,
)

RED_CIRCLE = Scene(Thing("circle", "red"), "blue")


def test_the_same_scene_and_seed_give_the_same_pixels() -> None:
    assert RED_CIRCLE.draw(7).tobytes() == Scene(Thing("circle", "red"), "blue").draw(7).tobytes()


def test_another_seed_gives_other_pixels() -> None:
    assert len({RED_CIRCLE.draw(seed).tobytes() for seed in range(20)}) == 20


def test_scenes_are_repeatable_and_depend_on_the_seed() -> None:
    assert scenes(96, 5) == scenes(96, 5)
    assert scenes(96, 5) != scenes(96, 6)
    assert scenes(96, 5)[:64] == scenes(64, 5)


def test_captions_are_distinct() -> None:
    captions = [scene.caption for scene in scenes(2000, EVALUATION_SEEDS[0])]
    assert len(set(captions)) == 2000


def test_training_and_evaluation_share_no_seed() -> None:
    assert not range(max(TRAINING_SEEDS.start, EVALUATION_SEEDS.start), min(TRAINING_SEEDS.stop, EVALUATION_SEEDS.stop))


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (RED_CIRCLE, "a red circle on a blue background"),
        (
            Scene(Thing("star", "orange", "striped"), "grey", size="large"),
            "a large striped orange star on a grey background",
        ),
        (Scene(Thing("cross", "green"), "white", count=3), "three green crosses on a white background"),
        (
            Scene(Thing("heart", "pink"), "orange", size="small", corner="top left"),
            "a small pink heart in the top left corner of an orange background",
        ),
        (
            Scene(Thing("ring", "red"), "black", relation="above", other=Thing("moon", "orange")),
            "a red ring above an orange moon on a black background",
        ),
    ],
)
def test_caption(scene: Scene, caption: str) -> None:
    assert scene.caption == caption


def test_paraphrases_vary_and_keep_the_colour() -> None:
    rng = np.random.default_rng(0)
    said = {RED_CIRCLE.paraphrase(rng) for _ in range(100)}
    assert "something round and red" in said
    assert len(said) >= 6
    assert all("red" in words for words in said)


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_opposite_relation_is_said_with_the_things_swapped(relation: str) -> None:
    pair = Scene(Thing("ring", "red"), "black", relation=relation, other=Thing("moon", "white"))
    rng = np.random.default_rng(0)
    opposite = f"a white moon {RELATIONS[relation][0]} a red ring"
    assert opposite in {pair.paraphrase(rng) for _ in range(100)}


@pytest.mark.parametrize("seed", range(6))
def test_pictures_are_rgb_with_the_shorter_side_fixed(seed: int) -> None:
    picture = RED_CIRCLE.draw(seed)
    assert picture.mode == "RGB"
    assert min(picture.size) == SIDE
    assert max(picture.size) in (SIDE, LONGER_SIDE)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_shows_its_colour_on_its_background(shape: str) -> None:
    pixels = np.asarray(Scene(Thing(shape, "white"), "black", size="large").draw(3)).mean(axis=2)
    assert (pixels > 200).mean() > 0.05
    assert (pixels < 60).mean() > 0.2


def test_jpeg_bytes_are_a_jpeg_of_the_picture() -> None:
    picture = RED_CIRCLE.draw(0)
    sent = Image.open(io.BytesIO(jpeg_bytes(picture)))
    assert (sent.format, sent.mode, sent.size) == ("JPEG", "RGB", picture.size)
    difference = np.abs(np.asarray(sent, dtype=int) - np.asarray(picture, dtype=int))
    assert difference.mean() < 4
