"""`model=hub`: backbones of KerasHub, from tiny presets that are made here."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dogbreeds
from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.data import drawn_dogs
from dogbreeds.experiments.attempt import execute
from dogbreeds.models.hub import Hub
from dogbreeds.tracking.records import RunOrigin
from tests.losses import recorded
from tests.tiers import tiered
from tests.tiny_presets import FAMILIES, OFFSET, SCALE, SIZE, build, save, saver
from tests.whole_training import of_same_place, whole_network_losses

# Family: names of its blocks between stem and top.
BLOCKS = {
    "vit": ["block_1", "block_2", "block_3"],
    "deit": ["block_1", "block_2", "block_3"],
    "dinov2": ["encoder_layers_0", "encoder_layers_1", "encoder_layers_2"],
    "dinov3": ["encoder_layers_0", "encoder_layers_1", "encoder_layers_2"],
    "siglip": ["block_0", "block_1", "block_2"],
    "swin": ["stage_0_blocks_0", "stage_0_blocks_1", "stage_1_blocks_0", "stage_1_blocks_1"],
    "mit": [f"hierarchical_encoder_{stage}_{layer}" for stage in (0, 1) for layer in (0, 1)],
    "resnet": ["stack0_block0", "stack0_block1", "stack1_block0", "stack1_block1"],
    "densenet": ["stack1_block1", "stack1_block2", "stack2_block1", "stack2_block2"],
    "vgg": ["block1", "block2", "block3"],
    "xception": ["block1", "block2", "block3"],
    "efficientnet": ["block1a", "block2a", "block2b", "block3a", "block3b"],
    "efficientnetv2": ["block1a", "block2a", "block2b", "block3a", "block3b"],
    "mobilenet": ["block_0_0", "block_1_0", "block_1_1", "block_2_0", "block_2_1", "block_3_0"],
    "cspnet": ["stage_0_block_0"],
    "hgnetv2": ["stage_0_block_0", "stage_1_block_0", "stage_1_block_1"],
}
# The families of the slow tier, a transformer and a convolutional network.
FIRST = ("vit", "efficientnet")


def families(slow: tuple[str, ...] = FIRST) -> list:
    return tiered(((family,) for family in FAMILIES), slow=[(family,) for family in slow])


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that saves a family's preset, and returns the folder."""
    return saver(tmp_path_factory.mktemp("presets"))


def spec(folder: Path | str, **more: Any) -> Hub:
    settings = {"architecture": "hub", "image_size": SIZE, "pixels": "raw", "converter": "preset", "weights": None}
    return Hub(preset=str(folder), **{**settings, **more})


@pytest.mark.parametrize("family", families())
def test_a_preset_gives_its_network_for_raw_pixels_in_blocks(
    preset: Callable[[str], Path], rng: np.random.Generator, family: str
) -> None:
    import keras

    backbone = spec(preset(family)).build(0)
    pixels = rng.uniform(0, 255, size=(3, SIZE, SIZE, 3)).astype(np.float32)
    converted = (pixels * np.array(SCALE) + np.array(OFFSET)).astype(np.float32)
    original = build(family)
    outputs = getattr(original, "vision_encoder", original)(converted, training=False)
    # Of several feature maps, the last stage's.
    expected = np.asarray(outputs["stage2"] if isinstance(outputs, dict) else outputs)
    assert np.allclose(backbone.network(pixels, training=False), expected, atol=1e-5)
    names = [block.name for block in backbone.blocks]
    assert [name for name in names if name not in ("stem", "top")] == BLOCKS[family]
    assert sum(len(block.layers) for block in backbone.blocks) == len(backbone.network.layers) - 1
    for block in backbone.blocks[:-1]:
        below = keras.Model(backbone.network.input, block.output)
        above = keras.Model(block.output, backbone.network.output)
        assert np.allclose(above(below(pixels, training=False), training=False), expected, atol=1e-5)
        assert None not in below.output_shape[1:]


SETTINGS = (
    "model=hub", f"model.image_size={SIZE}", "data=miniature", "data.classes=3", "data.train_per_class=8",
    "data.val_per_class=2", "data.test_per_class=1", "baseline=none", "preflight=none", "features.dtype=float32",
)  # fmt: skip
# Images of another size are resized by the whole network too, by its own operation.
STEPS = (
    "data.decoder=tensorflow",
    "augment=none",
    "head.widths=[16]",
    "phase.epochs=1",
    "phase.batch_size=6",
    "tracking=none",
)


@pytest.mark.parametrize(
    ("family", "unfreeze"),
    tiered(itertools.product(FAMILIES, ("top", "all"))),
)
def test_every_step_of_a_fine_tune_has_the_loss_of_training_the_whole_network(
    composed, preset: Callable[[str], Path], tmp_path: Path, family: str, unfreeze: str
) -> None:
    policy = ["unfreeze=blocks", "unfreeze.top=2"] if unfreeze == "top" else ["unfreeze=all"]
    run = composed(*SETTINGS, *STEPS, f"model.preset={preset(family)}", *policy, "optimizer.lr=1e-4")
    with recorded() as losses:
        execute(run, RunOrigin("", (), family, tmp_path))
    backbone = run.model.build(0)
    trained = run.unfreeze.plan(backbone.blocks).stages[-1]
    whole = run.model.construct(None)
    expected = whole_network_losses(run, whole, of_same_place(whole, run.model.build(0).network, trained))
    assert losses == pytest.approx(expected, rel=1e-4)
    assert len(losses) == len({round(loss, 5) for loss in losses}) == 4


@pytest.mark.long
@pytest.mark.parametrize("pooling", ["avg", "cls"])
@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_a_fine_tune_of_encoder_layers_has_the_losses_of_keras_hub_s_own_network(
    composed, preset: Callable[[str], Path], tmp_path: Path, family: str, pooling: str
) -> None:
    import keras

    run = composed(
        *SETTINGS, *STEPS, f"model.preset={preset(family)}", f"model.pooling={pooling}", "unfreeze=blocks",
        "unfreeze.top=3", "optimizer.lr=1e-4",
    )  # fmt: skip
    with recorded() as losses:
        execute(run, RunOrigin("", (), family, tmp_path))
    original = build(family)
    pixels = keras.layers.Rescaling(list(SCALE), list(OFFSET))
    images = keras.Input((SIZE, SIZE, 3))
    whole = keras.Model(images, original(pixels(images)))
    encoder = original.layers[2]
    layers = encoder.encoder_layers if family == "vit" else encoder.layers
    norm = encoder.layer_norm if family == "vit" else original.layers[3]
    assert losses == pytest.approx(whole_network_losses(run, whole, [*layers[-2:], norm]), rel=1e-4)


@pytest.mark.parametrize("family", families(slow=("vit",)))
def test_a_run_trains_fine_tunes_with_drop_path_and_is_loaded_elsewhere(
    composed, preset: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    settings = (*SETTINGS, f"model.preset={preset(family)}", "tracking.model=all", "phase.epochs=1")
    frozen = execute(composed(*settings), RunOrigin("", (), "frozen", tmp_path))
    tuned_run = composed(
        *settings, "phase=finetune", "phase.epochs=1", "unfreeze=blocks", "unfreeze.top=2", "unfreeze.drop_connect=on",
        "optimizer.layer_decay=0.5",
    )  # fmt: skip
    tuned = execute(tuned_run, RunOrigin("", (), "tuned", tmp_path))
    assert frozen.history.best is not None and "p_value" in tuned.verdict.numbers
    client, _ = tuned_run.tracking.connect()
    file = Path(client.download_artifacts(tuned.run_id, "model/model.keras", str(tmp_path)))
    answers = tmp_path / "answers.json"
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(file), str(answers)], check=True, capture_output=True)
    found = json.loads(answers.read_text())
    images = np.random.default_rng(0).integers(0, 255, size=(4, 48, 48, 3), dtype=np.uint8)
    from dogbreeds.inference import classifier

    loaded = classifier.load(file)
    assert np.allclose(found["probabilities"], loaded.model(images)["probabilities"], atol=1e-5)
    # Feature maps can be explained, tokens and vectors cannot.
    if len(tuned_run.model.build(0).network.output.shape) == 4:
        assert loaded.maps_and_head[1].output_shape == (None, 3)
    else:
        with pytest.raises(UserError, match="Grad-CAM"):
            _ = loaded.maps_and_head


# Loads a network by Keras alone, as a program does that knows nothing of this package.
ELSEWHERE = """
import json, sys
import numpy as np
import keras
network = keras.models.load_model(sys.argv[1], compile=False)
images = np.random.default_rng(0).integers(0, 255, size=(4, 48, 48, 3), dtype=np.uint8)
with open(sys.argv[2], "w") as answers:
    json.dump({"probabilities": np.asarray(network(images)["probabilities"]).tolist()}, answers)
"""


@pytest.mark.long
@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_a_fine_tuned_transformer_is_evaluated_and_exported(
    composed, preset: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    settings = [setting for setting in SETTINGS if setting != "preflight=none"]
    settings += [f"model.preset={preset(family)}", "tracking.model=all"]
    frozen = execute(composed(*settings, "phase.epochs=1"), RunOrigin("", (), "frozen", tmp_path))
    run = composed(*settings, "phase=finetune", "phase.epochs=1", "unfreeze=blocks", "unfreeze.top=2")
    tuned = execute(run, RunOrigin("", (), "tuned", tmp_path))
    assert run.tracking.record(tuned.run_id).tags["parent"] == frozen.run_id
    client, _ = run.tracking.connect()
    file = Path(client.download_artifacts(tuned.run_id, "model/model.keras", str(tmp_path)))
    classifier = dogbreeds.load(file)
    photos = tmp_path / "photos"
    for label, name in enumerate(classifier.class_names):
        (photos / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(drawn_dogs.draw("val", label, number)).save(photos / name / f"{number}.png")
    assert classifier.evaluate(photos).macro_f1.n == 9
    with pytest.raises(UserError, match="Grad-CAM"):
        classifier.explain(next(photos.rglob("*.png")))
    formats = classifier.export(tmp_path / "out", formats=["keras", "savedmodel", "onnx", "tflite"], images=photos)
    assert [each.name for each in formats] == ["keras", "savedmodel", "onnx", "tflite"]
    assert all(each.parity.same_class == each.parity.n and each.parity.max_difference < 1e-4 for each in formats)


@pytest.mark.slow
def test_a_saved_network_of_convolutions_needs_no_keras_hub(preset: Callable[[str], Path], tmp_path: Path) -> None:
    from dogbreeds.models.custom_layers import custom_layers

    assert list(custom_layers(spec(preset("efficientnet")).build(0).network)) == []
    assert list(custom_layers(spec(preset("vit")).build(0).network)) != []


@pytest.mark.slow
def test_a_preset_s_content_is_its_identity(preset: Callable[[str], Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(preset("vit"), copy)
    first, second = spec(preset("vit")), spec(copy)
    assert first.weights_digest() == second.weights_digest()
    fingerprint = first.build(0).fingerprint
    assert second.build(0).fingerprint == fingerprint
    file = copy / "image_converter.json"
    file.write_text(file.read_text().replace(str(OFFSET[0]), "-1.5"))
    assert second.weights_digest() != first.weights_digest()
    assert spec(copy, pooling="max").build(0).fingerprint != fingerprint
    assert spec(copy).content_identity() != first.content_identity()
    # A name or an address says what it says.
    assert spec("vit_base_patch16_224_imagenet").weights_digest() == "vit_base_patch16_224_imagenet"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("vit_bas_patch16_224_imagenet", MissingFileError, r"such as vit_base_patch16_224_imagenet, .* hf://user/name"),
        ("vit_base_patch16_224_imagenet", MissingFileError, r"could not be downloaded .*path/to/folder"),
        ("hf://nobody/nothing-is-here", MissingFileError, r"could not be downloaded .*path/to/folder"),
        ("hf://not a name", MissingFileError, r"neither a preset"),
        ("empty", MissingFileError, r"neither a preset of KerasHub nor a folder with one"),
        ("no network", UserError, r"cannot be loaded as an image backbone"),
        ("other weights", UserError, r"cannot be loaded as an image backbone"),
        ("no converter", UserError, r"has no image converter.*Type model\.converter=none model\.pixels=auto"),
        ("text", UserError, r"must be RGB images|It must have one of each"),
        ("another size", UserError, r"model\.image_size"),
    ],
)
def test_what_is_no_image_preset_is_refused_in_three_sentences(
    preset: Callable[[str], Path], tmp_path: Path, monkeypatch, name: str, error: type[Exception], message: str
) -> None:
    import keras_hub

    # No download is tried, wherever the test runs.
    for variable in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("dogbreeds.models.hub._is_reachable", lambda address: False)
    folder = tmp_path / name
    if name == "empty":
        folder.mkdir()
    elif name in ("no network", "other weights", "another size"):
        shutil.copytree(preset("vit"), folder)
        if name == "no network":
            (folder / "model.weights.h5").unlink()
        elif name == "other weights":
            shutil.copy(preset("dinov2") / "model.weights.h5", folder)
    elif name == "no converter":
        save("vgg", folder, converter=False)
    elif name == "text":
        keras_hub.models.BertBackbone(
            vocabulary_size=8, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4, max_sequence_length=4
        ).save_to_preset(str(folder))
    size = 64 if name == "another size" else SIZE
    with pytest.raises(error, match=message) as caught:
        spec(folder if folder.exists() else name, image_size=size).build(0)
    assert str(caught.value).count(". ") >= 2


@pytest.mark.long
def test_dinov2_takes_another_size_and_no_converter(preset: Callable[[str], Path]) -> None:
    backbone = spec(preset("dinov2"), image_size=48, pixels="torch", converter="none").build(0)
    assert backbone.network.input.shape == (None, 48, 48, 3)
    # A class token, two registers, and 6 x 6 patches.
    assert backbone.network.output.shape == (None, 39, 16)
    assert "preset_pixels" not in [layer.name for layer in backbone.network.layers]


def test_the_converter_of_a_preset_takes_raw_pixels() -> None:
    with pytest.raises(UserError, match=r"^model\.pixels=torch was given.* Type model\.converter=none"):
        spec("some", pixels="torch")
    assert spec("some", pixels="torch", converter="none").pixels == "torch"


def test_keras_hub_that_is_not_installed_is_said(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"KerasHub is not installed.* Type pip install 'dogbreeds\[hub\]'\."):
        spec("some").build(0)
