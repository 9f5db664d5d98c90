"""The parts of the plugin, as dogbreeds finds and builds them once the package is installed."""

import numpy as np
import pytest
from shapes_plugin.data import CLASSES, Shapes, draw

import dogbreeds

ALL = ["model=tinynet", "head=norm", "augment=noise", "optimizer=nadam", "preprocessing=grey"]


@pytest.fixture(scope="module")
def run() -> dogbreeds.Run:
    return dogbreeds.compose(ALL)


def test_options_are_found_without_being_named(run: dogbreeds.Run) -> None:
    parts = {type(part).__module__ for part in (run.data, run.model, run.head, run.augment, run.optimizer)}
    assert parts == {f"shapes_plugin.{name}" for name in ("data", "model", "head", "augment", "optimizer")}
    assert type(run.preprocessing).__module__ == "shapes_plugin.preprocessing"


def test_data_has_every_class_in_both_splits_and_no_image_twice(run: dogbreeds.Run) -> None:
    assert isinstance(run.data, Shapes)
    dataset = run.data.open()
    assert dataset.class_names == CLASSES
    assert np.bincount(dataset.train.labels).tolist() == [40, 40, 40]
    assert not set(dataset.train.source.ids) & set(dataset.val.source.ids)


def test_an_image_depends_on_its_id_alone() -> None:
    assert np.array_equal(draw("train/cross/3", 1), draw("train/cross/3", 1))
    assert not np.array_equal(draw("train/cross/3", 1), draw("train/cross/4", 1))


def test_noise_depends_on_seed_copy_and_index_alone(run: dogbreeds.Run) -> None:
    images = np.full((2, 8, 8, 3), 128, np.uint8)
    first = run.augment.apply(images, np.array([3, 4]), copy=0, seed=0)
    assert np.array_equal(run.augment.apply(images[1:], np.array([4]), copy=0, seed=0), first[1:])
    assert not np.array_equal(run.augment.apply(images, np.array([3, 4]), copy=1, seed=0), first)


def test_backbone_is_cut_at_its_blocks(run: dogbreeds.Run) -> None:
    backbone = run.model.build(seed=0)
    assert [block.name for block in backbone.blocks] == ["stem", "block1", "block2", "block3"]
    assert backbone.network.output.shape == (None, 6, 6, 64)
    # Architecture, weights, and a digest of settings and source.
    assert len(backbone.fingerprint.split(":")) == 3
