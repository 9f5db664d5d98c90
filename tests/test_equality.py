"""Training on cached features equals training the whole network: the loss of each step equals that of plain Keras."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.data.augment import Augment
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.prepare import head_seed
from dogbreeds.experiments.run import Run
from dogbreeds.models.network import Network
from dogbreeds.tracking.records import RunOrigin
from dogbreeds.training.loop import epoch_order
from tests.losses import recorded
from tests.tiers import tiered

SIZE = 64
CLASSES = 3
IMAGES_PER_CLASS = 8
BATCH = 6

# Name: (Keras class, its further arguments, preprocessing mode, how the names of layers that a fine-tune trains begin).
MODELS = {
    "effnetb0": ("EfficientNetB0", {}, "raw", ("block7a", "top")),
    "resnet50": ("ResNet50", {}, "caffe", ("conv5_block3",)),
    "mobilenetv2": ("MobileNetV2", {"alpha": 0.35}, "tf", ("block_16", "Conv_1", "out_relu")),
}


@pytest.fixture
def losses() -> Iterator[list[float]]:
    """Record the loss of every training step of dogbreeds."""
    with recorded() as losses:
        yield losses


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[Network]:
    """Record the networks that dogbreeds trains."""
    from dogbreeds.experiments import network_pool

    network_pool.release()
    assembled: list[Network] = []
    assemble = network_pool.assemble

    def record(*arguments, **named) -> Network:
        assembled.append(assemble(*arguments, **named))
        return assembled[-1]

    monkeypatch.setattr(network_pool, "assemble", record)
    return assembled


def reference(run: Run, name: str, network, finetune: bool):
    """Build the whole network from plain Keras layers, frozen in the way that is effective in Keras 3."""
    import keras

    head = run.head.build(network.output_shape[-1], CLASSES, head_seed(run.seed))
    trained = MODELS[name][3] if finetune else ()
    for layer in network.layers:
        layer.trainable = layer.name.startswith(trained) if trained else False
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    images = keras.Input((SIZE, SIZE, 3))
    features = keras.layers.GlobalAveragePooling2D()(network(images))
    hidden = keras.layers.Dropout(0.5, seed=head.layers[1].seed)(keras.layers.Dense(16, activation="relu")(features))
    whole = keras.Model(images, keras.layers.Dense(CLASSES)(hidden))
    whole.layers[-3].set_weights(head.layers[0].get_weights())
    whole.layers[-1].set_weights(head.layers[2].get_weights())
    whole.compile(
        optimizer=keras.optimizers.Adam(run.optimizer.lr),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return whole


def plain_keras_losses(run: Run, whole, mode: str) -> list[float]:
    """Train for an epoch on images, preprocessed by Keras' own function, and return the loss of each step."""
    import keras

    split = run.data.open().train
    images = augmented(run.augment, np.stack([read() for read in split.source.loaders()]), run.seed)
    if mode != "raw":
        images = keras.applications.imagenet_utils.preprocess_input(images.copy(), mode=mode)
    shuffled = epoch_order(run.seed, 0, len(split.rows))
    losses = []
    for start in range(0, len(shuffled), BATCH):
        rows = shuffled[start : start + BATCH]
        whole.reset_metrics()
        losses.append(float(np.ravel(whole.train_on_batch(images[rows], split.labels[rows]))[0]))
    return losses


def augmented(augment: Augment, images: np.ndarray, seed: int) -> np.ndarray:
    return augment.apply(images, np.arange(len(images)), 0, seed)


def settings(name: str, folder: Path, finetune: bool, augment: str) -> list[str]:
    more = ["model.alpha=0.35"] if name == "mobilenetv2" else []
    layers = {"effnetb0": 16, "resnet50": 10, "mobilenetv2": 11}[name]
    unfreeze = (
        ["unfreeze=last_n", f"unfreeze.layers={layers}", "optimizer.lr=${recommended.lr.finetune}"] if finetune else []
    )
    return [
        f"model={name}", f"model.weights={folder}/{MODELS[name][0]}.weights.h5", f"model.image_size={SIZE}", *more,
        *unfreeze, "data=miniature", f"data.classes={CLASSES}", f"data.train_per_class={IMAGES_PER_CLASS}",
        "data.val_per_class=2", "data.test_per_class=1",
        f"augment={augment}", "head.widths=[16]", "phase.epochs=1", f"phase.batch_size={BATCH}", "tracking=none",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "finetune", "augment"),
    tiered(
        itertools.product(MODELS, (False, True), ("none", "guide")),
        first=[("mobilenetv2", True, "guide")],
    ),
)
def test_every_training_step_has_the_loss_of_plain_keras(
    composed, tmp_path: Path, pretrained_backbone, losses, networks, name: str, finetune: bool, augment: str
) -> None:
    architecture, more, pixels, _ = MODELS[name]
    network = pretrained_backbone(architecture, pixels, SIZE, **more)
    run = composed(*settings(name, tmp_path, finetune, augment))
    execute(run, RunOrigin("", (), name, tmp_path))
    expected = plain_keras_losses(run, reference(run, name, network, finetune), pixels)
    assert len(losses) == CLASSES * IMAGES_PER_CLASS / BATCH
    assert losses == pytest.approx(expected, rel=1e-4)
    # Losses that never change would make the comparison meaningless.
    assert len({round(loss, 4) for loss in losses}) == len(losses)


@pytest.mark.parametrize(
    ("batchnorm", "drop_connect"),
    tiered(
        [("frozen", "off"), ("frozen", "on"), ("affine", "off"), ("affine", "on"), ("trainable", "off")],
        # The strictest case: dropout is active, but BatchNorm statistics must not change.
        slow=[("affine", "on")],
    ),
)
def test_training_changes_unfrozen_variables_only(
    composed, tmp_path: Path, networks: list[Network], batchnorm: str, drop_connect: str
) -> None:
    run = composed(
        "unfreeze=last_n", "unfreeze.layers=50", "unfreeze.exact=true", f"unfreeze.batchnorm={batchnorm}",
        f"unfreeze.drop_connect={drop_connect}", "data.classes=3", "data.train_per_class=6", "data.val_per_class=2",
        "data.test_per_class=1", "phase.epochs=1", "tracking=none",
    )  # fmt: skip
    before = {variable.path: variable.numpy() for variable in run.model.build(0).network.variables}
    result = execute(run, RunOrigin("", (), "", tmp_path))
    network = networks[0]
    assert network.suffix is not None
    assert network.plan.num_layers == 50
    changed = set()
    for layer in network.suffix.layers:
        original = (
            run.model.build(0).network.get_layer(layer.name)
            if layer.name not in ("pool",) and layer.variables
            else None
        )
        for variable, source in zip(layer.variables, original.variables if original else [], strict=True):
            if not np.array_equal(variable.numpy(), source.numpy()):
                changed.add((layer.name, variable.name))
    # The state of dropout's seed generator changes with every draw.
    kinds = {kind for _, kind in changed} - {"seed_generator_state"}
    expected = {"kernel", "bias"} | ({"gamma", "beta"} if batchnorm != "frozen" else set())
    expected |= {"moving_mean", "moving_variance"} if batchnorm == "trainable" else set()
    assert kinds == expected
    assert {name for name, kind in changed if kind != "seed_generator_state"} <= network.plan.stages[0]
    after = {variable.path: variable.numpy() for variable in run.model.build(0).network.variables}
    # The backbone, and with it the prefix, keeps every bit.
    assert all(np.array_equal(before[path], after[path]) for path in before)
    assert result.history.best_logits is not None
    images = np.stack([read() for read in run.data.open().val.source.loaders()])
    probabilities = network.full_model(run.data.open().class_names, "stretch")(images)["probabilities"].numpy()
    scores = np.exp(result.history.best_logits - result.history.best_logits.max(axis=1, keepdims=True))
    assert np.allclose(probabilities, scores / scores.sum(axis=1, keepdims=True), atol=1e-5)


SMALL = ("data.classes=3", "data.train_per_class=6", "data.val_per_class=2", "data.test_per_class=1", "tracking=none")


@pytest.mark.slow
def test_layer_decay_shrinks_learning_rates_with_depth(composed, tmp_path: Path, networks: list[Network]) -> None:
    updates: list[dict[str, np.ndarray]] = []
    for decay in (1.0, 0.5):
        run = composed(
            "unfreeze=blocks", "unfreeze.top=3", "optimizer=sgd", "optimizer.lr=1e-2", "optimizer.momentum=0",
            f"optimizer.layer_decay={decay}",
            "phase.epochs=1", "phase.batch_size=18", "head.dropout=0", *SMALL,
        )  # fmt: skip
        execute(run, RunOrigin("", (), "", tmp_path))
        assert networks[-1].suffix is not None
        original = run.model.build(0).network
        layers = [layer for layer in networks[-1].suffix.layers if hasattr(layer, "kernel")]
        updates.append(
            {layer.name: layer.kernel.numpy() - original.get_layer(layer.name).kernel.numpy() for layer in layers}
        )
    for name, update in updates[0].items():
        depth = networks[0].plan.depth[name]
        assert depth == {"top": 1, "block7a": 2, "block6c": 3}[name.split("_")[0]]
        assert np.allclose(updates[1][name], update * 0.5**depth, rtol=1e-2, atol=1e-7)


@pytest.mark.slow
def test_gradual_unfreezing_trains_each_block_from_its_epoch_on(
    composed, tmp_path: Path, networks: list[Network], monkeypatch
) -> None:
    from dogbreeds.experiments import recording

    changed: list[set[str]] = []
    run = composed("unfreeze=gradual", "unfreeze.top=3", "unfreeze.every_epochs=1", "phase.epochs=3", *SMALL)
    original = run.model.build(0).network

    def record_changed_blocks(*_: object) -> str:
        layers = [layer for layer in networks[-1].suffix.layers if hasattr(layer, "kernel")]
        changed_layers = [
            layer.name
            for layer in layers
            if not np.array_equal(layer.kernel.numpy(), original.get_layer(layer.name).kernel.numpy())
        ]
        changed.append({name.split("_")[0] for name in changed_layers})
        return ""

    monkeypatch.setattr(recording, "epoch_line", record_changed_blocks)
    execute(run, RunOrigin("", (), "", tmp_path))
    assert changed == [{"top"}, {"top", "block7a"}, {"top", "block7a", "block6c"}]
