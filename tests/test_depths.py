"""`features.layers`: features of several depths, frozen, above a cut, and in the saved network."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.core.former_names import IMPLIED_PARAMS
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.classifier import Classifier
from dogbreeds.experiments.recorded_runs import Only, open_network
from dogbreeds.models.blocks import Block
from dogbreeds.models.depths import find_depths, with_depths
from dogbreeds.models.preprocessing import Preprocessing
from dogbreeds.models.unfreeze import Blocks, LastN, Nothing
from dogbreeds.tracking.records import RunOrigin, differing

NAMES = ("stem", "block1a", "block2a", "block2b", "block10a", "top")
BLOCKS = [Block(name, (), cast("object", None)) for name in NAMES]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "depths"),
    [
        ([], ()),
        (["top"], (6,)),
        (["top", "block2a"], (3, 6)),
        (["block2", "block2b", "block1"], (2, 4)),
        (["block10a", "stem"], (1, 5)),
    ],
)
def test_layers_are_found_by_the_names_of_blocks_and_stages(names: Sequence[str], depths: tuple[int, ...]) -> None:
    assert find_depths(names, BLOCKS) == depths


@pytest.mark.parametrize("name", ["block9", "block", "block1b", "block1.", "TOP"])
def test_a_layer_that_is_no_block_is_refused_with_the_blocks(name: str) -> None:
    with pytest.raises(UserError) as refusal:
        find_depths(["top", name], BLOCKS)
    assert repr(name) in str(refusal.value)
    assert ", ".join(NAMES) in str(refusal.value)
    assert "Type 'features.layers=[block10a,top]'" in str(refusal.value)


def test_cut_is_below_all_layers_where_part_of_the_backbone_trains() -> None:
    frozen = Nothing(batchnorm="frozen", drop_connect="off").plan(BLOCKS)
    assert with_depths(frozen, (2, 6), BLOCKS) == frozen
    top_two = Blocks(batchnorm="frozen", drop_connect="off", top=2, names=[]).plan(BLOCKS)
    assert with_depths(top_two, (), BLOCKS) == top_two
    assert with_depths(top_two, (5, 6), BLOCKS) == top_two
    lowered = with_depths(top_two, (2, 6), BLOCKS)
    assert (lowered.cut, lowered.stages) == (2, top_two.stages)
    assert "block1a" in lowered.summary


def test_layers_are_part_of_what_a_run_and_its_parent_share(composed) -> None:
    plain, layered = composed(), composed("features.layers=[block5a,top]")
    assert layered.key not in (plain.key, composed("features.layers=[block6a,top]").key)
    assert layered.parameters()["features.layers"] == ("block5a", "top")
    # A run of an earlier version recorded none.
    assert differing({}, {"features.layers": IMPLIED_PARAMS["features.layers"]}) == []
    assert differing({}, {"features.layers": "['top']"}) == ["features.layers"]


@pytest.fixture(scope="module")
def miniature(composed_in, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory):
    run = composed_in(tmp_path_factory.mktemp("depths"), shared_cache)
    return run, run("tracking=none").model.build(0)


@pytest.mark.long
def test_each_depth_counts_equally_and_a_cut_below_gives_the_same_features(miniature, rng: np.random.Generator) -> None:
    import keras

    from dogbreeds.models.assembly import assemble, build_prefix
    from dogbreeds.models.network import Network
    from dogbreeds.training import baseline

    composed, backbone = miniature
    preprocessing: Preprocessing = composed("tracking=none").preprocessing
    names = [block.name for block in backbone.blocks]
    depths = find_depths([names[2], names[-2], "top"], backbone.blocks)
    images = rng.uniform(0, 255, size=(3, 64, 64, 3)).astype(np.float32)

    def features(network: Network) -> np.ndarray:
        outputs = network.prefix.graph(images, training=False)
        return np.asarray(outputs if network.suffix is None else network.suffix(outputs, training=False))

    def built(unfreeze) -> Network:
        plan = with_depths(unfreeze.plan(backbone.blocks), depths, backbone.blocks)
        return assemble(
            backbone, preprocessing, plan, lambda width: keras.Sequential([keras.Input((width,))]), depths=depths
        )

    frozen = built(Nothing(batchnorm="frozen", drop_connect="off"))
    found = features(frozen)
    ends = np.cumsum([backbone.blocks[depth - 1].output.shape[-1] for depth in depths])
    norms = [np.linalg.norm(part, axis=1) for part in np.split(found, ends[:-1], axis=1)]
    assert np.allclose(norms, np.sqrt(ends[-1] / 3), rtol=1e-3)
    assert np.square(found).mean() == pytest.approx(1, rel=1e-3)
    tuned = built(LastN(batchnorm="frozen", drop_connect="off", layers=20, exact=False))
    assert tuned.plan.cut == depths[0]
    assert np.allclose(features(tuned), found, atol=1e-4)
    # The 1000-way top of the weights reads the output of the backbone alone.
    plain = baseline._prefix(frozen, backbone, preprocessing, backbone.network.outputs[0])
    assert plain.fingerprint == build_prefix(backbone, preprocessing, len(names), (None,)).fingerprint
    assert plain.fingerprint != frozen.prefix.fingerprint
    # What lies between cut and trained layers is frozen.
    trained = {id(variable) for group in tuned.trainable_by_depth(tuned.plan.stages[-1]).values() for variable in group}
    assert tuned.suffix is not None
    assert 0 < len(trained) < len(tuned.suffix.trainable_variables)


@pytest.mark.long
@pytest.mark.parametrize("runtime", ["tensorflow", "openvino"])
def test_run_on_several_depths_saves_a_network_that_measures_the_same(composed, tmp_path: Path, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    settings = (
        "data.classes=6", "data.train_per_class=8", "features.layers=[block5,block6a,top]", "preflight=none",
        "tracking.system_metrics_seconds=0", f"features.runtime={runtime}", "head=linear", "phase.epochs=2",
    )  # fmt: skip
    origin = RunOrigin("seed: 0\n", (), "a run", tmp_path)
    run = composed(*settings)
    result = execute(run, origin)
    record = run.tracking.record(result.run_id)
    with open_network(run.tracking, record.run_id, Only(model=None, data=None)) as (found, network, file):
        tested = Classifier(network.model, network.class_names, found, file, run.tracking).evaluate(
            run.data.open(), split="test"
        )
        with pytest.raises(UserError, match=r"features\.layers=\[\]"):
            _ = network.maps_and_head
    assert tested.scores.accuracy == result.test.accuracy
    # Nothing is learned, so the fine-tune gives what its parent gave, from another tensor in the cache.
    tuned = execute(composed(*settings, "phase=finetune", "phase.epochs=1", "optimizer.lr=1e-12"), origin)
    assert np.allclose(tuned.predictions["test"].logits, result.predictions["test"].logits, atol=1e-3)
    with pytest.raises(UserError, match=r"features\.layers is"):
        execute(
            replace(composed(*settings, "phase=finetune", "features.layers=[]", f"phase.parent={record.run_id}")),
            origin,
        )
