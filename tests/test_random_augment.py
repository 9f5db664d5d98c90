"""Random crops and operations of Keras' layers: what they draw, and what they do to pixels."""

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.data import drawn_dogs
from dogbreeds.data.augment import Augment
from dogbreeds.data.random_augment import OPERATIONS, Crop, Rand, Trivial

NO_CHANGE = {"copies": 2, "area_fraction": 1, "size": None, "horizontal_flip": False}
CROP = NO_CHANGE | {"area_fraction": 0.35, "horizontal_flip": True}
IMAGES = np.stack([drawn_dogs.draw("train", label, 0) for label in range(6)])
INDICES = np.arange(6)


def test_a_crop_of_the_whole_image_leaves_it_unchanged() -> None:
    assert np.allclose(Crop(**NO_CHANGE).apply(IMAGES, INDICES, 0, 0), IMAGES, atol=1e-3)
    mirrored = Crop(**NO_CHANGE | {"horizontal_flip": True}).apply(
        np.repeat(IMAGES[:1], 100, axis=0), np.arange(100), 0, 0
    )
    is_mirrored = [np.allclose(image, IMAGES[0][:, ::-1], atol=1e-2) for image in mirrored]
    assert 35 <= sum(is_mirrored) <= 65


@pytest.mark.parametrize("augment", [Crop(**CROP), Trivial(**CROP), Rand(**CROP, operations=2, strength=0.5)])
def test_augmented_copy_depends_only_on_seed_copy_and_index(augment: Augment) -> None:
    batch = augment.apply(IMAGES, INDICES, 1, 7)
    assert batch.dtype == np.float32
    assert batch.min() >= 0
    assert batch.max() <= 255
    assert np.array_equal(augment.apply(IMAGES[3:4], INDICES[3:4], 1, 7)[0], batch[3])
    for copy, seed, shift in ((0, 7, 0), (1, 8, 0), (1, 7, 1)):
        assert np.abs(augment.apply(IMAGES, INDICES + shift, copy, seed) - batch).mean() > 5


def test_crops_cover_areas_from_the_smallest_to_the_whole_image() -> None:
    boxes = np.array([Crop(**CROP).draw_parameters(index, 0, 0).box for index in range(500)])
    heights, widths = boxes[:, 2] - boxes[:, 0], np.abs(boxes[:, 3] - boxes[:, 1])
    areas, ratios = heights * widths, widths / heights
    assert boxes.min() >= 0
    assert boxes.max() <= 1 + 1e-9
    assert 0.35 <= areas.min() < 0.4
    assert areas.max() > 0.9
    assert 3 / 4 - 1e-9 <= ratios.min() < 0.8
    assert 1.25 < ratios.max() <= 4 / 3 + 1e-9


def test_crop_of_another_size_is_resized_to_it() -> None:
    augment = Crop(**CROP | {"size": 32})
    assert augment.apply(IMAGES, INDICES, 0, 0).shape == (6, 32, 32, 3)
    assert augment.train_size(64) == 32
    assert Crop(**CROP).train_size(64) == 64
    assert augment.identity["size"] == 32


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_operations_change_images_each_by_itself(number: int) -> None:
    pixels = IMAGES.astype(np.float32)
    strengths = np.linspace(-1, 1, 6).astype(np.float32)
    changed = np.asarray(OPERATIONS[number](pixels, strengths))
    alone = [np.asarray(OPERATIONS[number](pixels[row : row + 1], strengths[row : row + 1]))[0] for row in range(6)]
    assert np.allclose(changed, alone, atol=1e-3)
    difference = np.abs(changed - pixels).mean(axis=(1, 2, 3))
    # The first is the identity; automatic contrast and equalisation know no strength.
    assert (difference[0] == 0) == (number == 0)
    if number not in (0, len(OPERATIONS) - 1, len(OPERATIONS) - 2):
        still = np.asarray(OPERATIONS[number](pixels, np.zeros(6, np.float32)))
        assert np.allclose(still, pixels, atol=1.01)


def test_operations_are_drawn_as_their_sources_say() -> None:
    rand = Rand(**CROP, operations=2, strength=0.5)
    drawn = [rand.draw_parameters(index, 0, 0).operations for index in range(300)]
    assert {len(operations) for operations in drawn} == {2}
    assert {strength for operations in drawn for _, strength in operations} == {-0.5, 0.5}
    trivial = [Trivial(**CROP).draw_parameters(index, 0, 0).operations[0] for index in range(300)]
    assert {number for number, _ in trivial} == set(range(len(OPERATIONS)))
    assert np.std([strength for _, strength in trivial]) == pytest.approx(1 / np.sqrt(3), abs=0.05)


def test_no_copies_augment_every_epoch_anew() -> None:
    live, cached = Crop(**CROP | {"copies": None}), Crop(**CROP)
    assert [live.copy_at(epoch) for epoch in range(4)] == [0, 1, 2, 3]
    assert [cached.copy_at(epoch) for epoch in range(4)] == [0, 1, 0, 1]
    assert live.is_live
    assert live.num_copies() == 0
    assert live.identity == cached.identity


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["augment=crop", "augment.size=60"], "augment.size=32"),
        (["augment=crop", "augment.size=8"], "augment.size=192"),
        (["augment=crop", "augment.area_fraction=0"], "augment.area_fraction=0.35"),
        (["augment=crop", "augment.copies=null", "head=logistic"], "augment.copies=2"),
        (["mix=mixup", "head=logistic"], "mix=none"),
        (["mix=cutmix"], "mix=mixup"),
        (["loss.label_smoothing=1"], "loss.label_smoothing=0.1"),
        (["ema.decay=1"], "ema.decay=0.99"),
        (["optimizer=adamw", "optimizer.weight_decay_on=some"], "optimizer.weight_decay_on=all"),
    ],
)
def test_bad_settings_say_what_to_type(composed, overrides: list[str], named: str) -> None:
    with pytest.raises(UserError) as error:
        composed(*overrides)
    message = str(error.value)
    assert overrides[-1].split("=")[0].split(".")[0] in message
    assert f"Type {named}" in message


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([], "f360958182cbe339"),
        pytest.param(["optimizer=adamw", "augment=guide"], "fe40c70dd58fac88", marks=pytest.mark.slow),
        pytest.param(["phase=finetune", "loss.class_weights=balanced"], "d88393928e7a6012", marks=pytest.mark.slow),
    ],
)
def test_runs_without_the_settings_of_later_versions_keep_their_keys(composed, overrides: list[str], key: str) -> None:
    run = composed(*overrides)
    assert run.key == key
    for later in ("mix=mixup", "ema.decay=0.9", "loss.label_smoothing=0.1"):
        assert composed(*overrides, later).key != key
