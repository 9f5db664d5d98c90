"""Training on a kept prefix is training the whole network: every step's loss beside that of plain Keras on the photos themselves."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.data.augment import Augment
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.prepare import _head_seed
from dogbreeds.experiments.run import Run
from dogbreeds.models.network import Network
from dogbreeds.tracking.records import RunOrigin
from dogbreeds.training.loop import order
from tests.losses import recorded
from tests.tiers import tiered

SIZE, BREEDS, EACH, BATCH = 64, 3, 8, 6

# Name: (Keras' class, more arguments, pixels, what a fine-tune of ours trains, and so the reference)
MODELS = {
    "effnetb0": ("EfficientNetB0", {}, "raw", ("block7a", "top")),
    "resnet50": ("ResNet50", {}, "caffe", ("conv5_block3",)),
    "mobilenetv2": ("MobileNetV2", {"alpha": 0.35}, "tf", ("block_16", "Conv_1", "out_relu")),
}


@pytest.fixture
def losses() -> Iterator[list[float]]:
    """The loss of every step that our code takes."""
    with recorded() as taken:
        yield taken


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[Network]:
    """The networks that our code trains."""
    from dogbreeds.experiments import prepare

    made: list[Network] = []
    assemble = prepare.assemble
    monkeypatch.setattr(prepare, "assemble", lambda *arguments: made.append(assemble(*arguments)) or made[-1])
    return made


def reference(run: Run, name: str, network, finetune: bool):
    """The whole network of plain Keras layers, its parts frozen in the way that holds in Keras 3."""
    import keras

    ours = run.head.build(network.output_shape[-1], BREEDS, _head_seed(run.seed))
    trained = MODELS[name][3] if finetune else ()
    for layer in network.layers:
        layer.trainable = layer.name.startswith(trained) if trained else False
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    photos = keras.Input((SIZE, SIZE, 3))
    features = keras.layers.GlobalAveragePooling2D()(network(photos))
    hidden = keras.layers.Dropout(0.5, seed=ours.layers[1].seed)(keras.layers.Dense(16, activation="relu")(features))
    whole = keras.Model(photos, keras.layers.Dense(BREEDS)(hidden))
    for layer, weights in (
        (whole.layers[-3], ours.layers[0].get_weights()),
        (whole.layers[-1], ours.layers[2].get_weights()),
    ):
        layer.set_weights(weights)
    whole.compile(
        optimizer=keras.optimizers.Adam(run.optimizer.lr),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return whole


def live_losses(run: Run, whole, mode: str) -> list[float]:
    """The first epoch's losses on the photos themselves, preprocessed by Keras' own function."""
    import keras

    split = run.data.open().train
    photos = np.stack([photo() for photo in split.source.read()])
    shown = augmented(run.augment, photos, run.seed)
    if mode != "raw":
        shown = keras.applications.imagenet_utils.preprocess_input(shown.copy(), mode=mode)
    shuffled = order(run.seed, 0, len(split.rows))
    taken = []
    for start in range(0, len(shuffled), BATCH):
        rows = shuffled[start : start + BATCH]
        whole.reset_metrics()
        taken.append(float(np.ravel(whole.train_on_batch(shown[rows], split.labels[rows]))[0]))
    return taken


def augmented(augment: Augment, photos: np.ndarray, seed: int) -> np.ndarray:
    return augment.view(photos, np.arange(len(photos)), 0, seed)


def settings(name: str, folder: Path, finetune: bool, augment: str) -> list[str]:
    more = ["model.alpha=0.35"] if name == "mobilenetv2" else []
    layers = {"effnetb0": 16, "resnet50": 10, "mobilenetv2": 11}[name]
    unfreeze = (
        ["unfreeze=last_n", f"unfreeze.layers={layers}", "optimizer.lr=${recommended.lr.finetune}"] if finetune else []
    )
    return [
        f"model={name}", f"model.weights={folder}/{MODELS[name][0]}.weights.h5", f"model.image_size={SIZE}", *more, *unfreeze,
        "data=miniature", f"data.breeds={BREEDS}", f"data.train_per_breed={EACH}", "data.val_per_breed=2", "data.test_per_breed=1",
        f"augment={augment}", "head.widths=[16]", "phase.epochs=1", f"phase.batch_size={BATCH}", "tracking=none",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "finetune", "augment"),
    tiered(
        itertools.product(MODELS, (False, True), ("none", "guide")),
        first=[("mobilenetv2", True, "guide")],
        slow=[("mobilenetv2", False, "none")],
    ),
)
def test_every_step_is_plain_keras_own(
    composed, tmp_path: Path, remembering, losses, networks, name: str, finetune: bool, augment: str
) -> None:
    architecture, more, pixels, _ = MODELS[name]
    network = remembering(architecture, pixels, SIZE, **more)
    run = composed(*settings(name, tmp_path, finetune, augment))
    execute(run, RunOrigin("", (), name, tmp_path))
    expected = live_losses(run, reference(run, name, network, finetune), pixels)
    assert len(losses) == BREEDS * EACH / BATCH
    assert losses == pytest.approx(expected, rel=1e-4)
    # Something is learned, or the comparison says nothing
    assert len({round(loss, 4) for loss in losses}) == len(losses)


@pytest.mark.parametrize(
    ("batchnorm", "drop_connect"),
    tiered(
        [("frozen", "off"), ("frozen", "on"), ("affine", "off"), ("affine", "on"), ("trainable", "off")],
        # The strictest: dropout is awake, and statistics must not move
        first=[("affine", "on")],
        slow=[("trainable", "off")],
    ),
)
def test_only_what_was_unfrozen_changes(
    composed, tmp_path: Path, networks: list[Network], batchnorm: str, drop_connect: str
) -> None:
    run = composed(
        "unfreeze=last_n", "unfreeze.layers=50", "unfreeze.exact=true", f"unfreeze.batchnorm={batchnorm}", f"unfreeze.drop_connect={drop_connect}",
        "data.breeds=3", "data.train_per_breed=6", "data.val_per_breed=2", "data.test_per_breed=1", "phase.epochs=1", "tracking=none",
    )  # fmt: skip
    before = {variable.path: variable.numpy() for variable in run.model.build(0).network.variables}
    result = execute(run, RunOrigin("", (), "", tmp_path))
    network = networks[0]
    assert network.suffix is not None
    assert network.plan.layers == 50
    changed = set()
    for layer in network.suffix.layers:
        original = (
            run.model.build(0).network.get_layer(layer.name)
            if layer.name not in ("pool",) and layer.variables
            else None
        )
        for variable, source in zip(layer.variables, original.variables if original else [], strict=True):
            moved = not np.array_equal(variable.numpy(), source.numpy())
            if moved:
                changed.add((layer.name, variable.name))
    # Dropout's own count of its draws
    kinds = {kind for _, kind in changed} - {"seed_generator_state"}
    expected = {"kernel", "bias"} | ({"gamma", "beta"} if batchnorm != "frozen" else set())
    expected |= {"moving_mean", "moving_variance"} if batchnorm == "trainable" else set()
    assert kinds == expected
    assert {name for name, kind in changed if kind != "seed_generator_state"} <= network.plan.stages[0]
    after = {variable.path: variable.numpy() for variable in run.model.build(0).network.variables}
    # The backbone itself, and so the prefix, is bit-equal
    assert all(np.array_equal(before[path], after[path]) for path in before)
    assert result.outcome.best_logits is not None
    photos = np.stack([photo() for photo in run.data.open().val.source.read()])
    said = network.whole(run.data.open().class_names, "stretch")(photos)["probabilities"].numpy()
    scores = np.exp(result.outcome.best_logits - result.outcome.best_logits.max(axis=1, keepdims=True))
    assert np.allclose(said, scores / scores.sum(axis=1, keepdims=True), atol=1e-5)


SMALL = ("data.breeds=3", "data.train_per_breed=6", "data.val_per_breed=2", "data.test_per_breed=1", "tracking=none")


@pytest.mark.slow
def test_rates_shrink_with_depth(composed, tmp_path: Path, networks: list[Network]) -> None:
    moved: list[dict[str, np.ndarray]] = []
    for decay in (1.0, 0.5):
        run = composed(
            "unfreeze=blocks", "unfreeze.top=3", "optimizer=sgd", "optimizer.lr=1e-2", "optimizer.momentum=0", f"optimizer.layer_decay={decay}",
            "phase.epochs=1", "phase.batch_size=18", "head.dropout=0", *SMALL,
        )  # fmt: skip
        execute(run, RunOrigin("", (), "", tmp_path))
        assert networks[-1].suffix is not None
        original = run.model.build(0).network
        layers = [layer for layer in networks[-1].suffix.layers if hasattr(layer, "kernel")]
        moved.append(
            {layer.name: layer.kernel.numpy() - original.get_layer(layer.name).kernel.numpy() for layer in layers}
        )
    for name, step in moved[0].items():
        depth = networks[0].plan.depth[name]
        assert depth == {"top": 1, "block7a": 2, "block6c": 3}[name.split("_")[0]]
        assert np.allclose(moved[1][name], step * 0.5**depth, rtol=1e-2, atol=1e-7)


@pytest.mark.slow
def test_gradual_unfreezing_reaches_each_block_in_its_epoch(
    composed, tmp_path: Path, networks: list[Network], monkeypatch
) -> None:
    from dogbreeds.experiments import recording

    changed: list[set[str]] = []
    run = composed("unfreeze=gradual", "unfreeze.top=3", "unfreeze.every_epochs=1", "phase.epochs=3", *SMALL)
    original = run.model.build(0).network

    def said(*_: object) -> str:
        layers = [layer for layer in networks[-1].suffix.layers if hasattr(layer, "kernel")]
        moved = [
            layer.name
            for layer in layers
            if not np.array_equal(layer.kernel.numpy(), original.get_layer(layer.name).kernel.numpy())
        ]
        changed.append({name.split("_")[0] for name in moved})
        return ""

    monkeypatch.setattr(recording, "_epoch_line", said)
    execute(run, RunOrigin("", (), "", tmp_path))
    assert changed == [{"top"}, {"top", "block7a"}, {"top", "block7a", "block6c"}]
