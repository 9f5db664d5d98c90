"""The reference probe: its closed forms compared with refitting and with plain NumPy, and hostile features."""

import numpy as np
import pytest

from dogbreeds.evaluation import linear_classifier, reference_probe
from dogbreeds.evaluation.metrics import PairedOutcome, Proportion, Reference
from dogbreeds.evaluation.reference_probe import NEAREST_MEAN, RIDGE, ReferenceProbe, fit_probe
from dogbreeds.evaluation.results import ReferenceResult


def draw(
    rng: np.random.Generator, classes: int, per_class: int, width: int, noise: float = 2.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw features around a centre for each class, of which a few directions vary most: training and test images."""
    basis = rng.normal(size=(20, width)) / np.sqrt(1 + np.arange(20))[:, None]
    centres = rng.normal(size=(classes, 20))
    labels = np.repeat(np.arange(classes), per_class)
    drawn = [(centres[labels] + noise * rng.normal(size=(len(labels), 20))) @ basis + 3 for _ in range(2)]
    train, test = (features.astype(np.float32) for features in drawn)
    return train, labels, test, labels


def accuracy(probe: ReferenceProbe, features: np.ndarray, labels: np.ndarray) -> float:
    return float((probe.logits(features).argmax(axis=1) == labels).mean())


def by_normal_equations(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, penalty: float, test: np.ndarray
) -> np.ndarray:
    """Weighted ridge regression with an intercept that is not penalised, on features standardised with the weights."""
    mean = np.average(features, axis=0, weights=weights)
    deviation = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights))
    design = np.column_stack([(features - mean) / deviation, np.ones(len(features))])
    ridge = np.diag([*[penalty] * features.shape[1], 0.0])
    targets = np.eye(labels.max() + 1)[labels]
    solution = np.linalg.solve(design.T @ (weights[:, None] * design) + ridge, design.T @ (weights[:, None] * targets))
    return np.column_stack([(test - mean) / deviation, np.ones(len(test))]) @ solution


@pytest.mark.parametrize("width", [8, 60], ids=["more images", "more features"])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_ridge_equals_the_normal_equations(rng: np.random.Generator, width: int, is_weighted: bool) -> None:
    train, labels, test, _ = draw(rng, classes=3, per_class=10, width=width)
    # The classes have unequal numbers of images.
    train, labels = train[:25], labels[:25]
    class_weights = np.array([0.5, 1.0, 2.0], np.float32) if is_weighted else None
    probe = fit_probe(train, labels, 3, class_weights=class_weights)
    weights = np.ones(25) if class_weights is None else class_weights[labels].astype(float)
    expected = by_normal_equations(train.astype(float), labels, weights, probe.facts["penalty"], test.astype(float))
    assert probe.method == RIDGE
    assert probe.logits(test) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("width", [8, 60], ids=["more images", "more features"])
def test_leave_one_out_accuracy_is_that_of_refitting(
    rng: np.random.Generator, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, labels, _, _ = draw(rng, classes=3, per_class=9, width=width, noise=1.5)
    # One penalty only, as each refit would choose its own.
    monkeypatch.setattr(reference_probe, "_PENALTIES", np.array([0.3]))
    weights = np.array([0.6, 1.0, 1.4])
    probe = fit_probe(train, labels, 3, class_weights=weights)
    # All fits have the scale of the whole, so that nothing but the image differs.
    scaled = (train - probe.mean) * probe.scale
    targets = np.eye(3)[labels]
    correct = []
    for left_out in range(len(labels)):
        others = np.arange(len(labels)) != left_out
        own = weights[labels[others]][:, None]
        design = np.column_stack([scaled[others], np.ones(others.sum())])
        ridge = np.diag([*[probe.facts["penalty"]] * width, 0.0])
        solution = np.linalg.solve(design.T @ (own * design) + ridge, design.T @ (own * targets[others]))
        correct.append(([*scaled[left_out], 1.0] @ solution).argmax() == labels[left_out])
    assert 0.3 < np.mean(correct) < 1
    assert probe.left_out.tolist() == list(range(len(labels)))
    assert (probe.left_out_scores.argmax(axis=1) == labels).tolist() == correct


@pytest.mark.parametrize(
    ("classes", "per_class", "width", "least"), [(2, 5, 200, 0.9), (10, 5, 100, 0.6), (120, 20, 64, 0.35)]
)
def test_probe_learns_from_few_and_many_classes(
    rng: np.random.Generator, classes: int, per_class: int, width: int, least: float
) -> None:
    train, labels, test, test_labels = draw(rng, classes, per_class, width, noise=1.0)
    probe = fit_probe(train, labels, classes)
    assert accuracy(probe, test, test_labels) > least
    assert np.isfinite(probe.logits(test)).all()


def test_noisy_labels_get_a_larger_penalty(rng: np.random.Generator) -> None:
    train, labels, _, _ = draw(rng, classes=10, per_class=20, width=150, noise=0.5)
    noisy = np.where(rng.random(len(labels)) < 0.6, rng.integers(0, 10, len(labels)), labels)
    clean = fit_probe(train, labels, 10).facts["penalty"]
    assert fit_probe(train, noisy, 10).facts["penalty"] > clean


def test_probe_reads_the_rows_that_it_is_told_and_in_parts(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, labels, test, _ = draw(rng, classes=4, per_class=12, width=10)
    rows = rng.permutation(len(labels))[:40]
    expected = fit_probe(train[rows], labels[rows], 4)
    both = np.concatenate([train, test])
    # Seven rows of float64 at once.
    monkeypatch.setattr(linear_classifier, "_PART_BYTES", 7 * 10 * 8)
    probe = fit_probe(both, labels[rows], 4, rows)
    assert probe.logits(both, 48 + np.arange(48)) == pytest.approx(expected.logits(test), abs=1e-5)
    assert (probe.logits(test) == fit_probe(both, labels[rows], 4, rows).logits(test)).all()


@pytest.mark.parametrize("method", [RIDGE, NEAREST_MEAN])
def test_constant_and_non_finite_features_change_nothing(
    rng: np.random.Generator, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == NEAREST_MEAN:
        monkeypatch.setattr(reference_probe, "_MAX_MULTIPLICATIONS", 0)
    train, labels, test, test_labels = draw(rng, classes=3, per_class=20, width=10, noise=1.0)
    plain = fit_probe(train, labels, 3)
    bad = np.full((60, 4), [1e4, 0.0, np.nan, np.inf], np.float32)
    hostile = fit_probe(np.hstack([train, bad]), labels, 3)
    assert hostile.method == plain.method == method
    assert (hostile.scale[10:] == 0).all()
    predicted = plain.logits(test).argmax(axis=1)
    assert (hostile.logits(np.hstack([test, bad + 7])).argmax(axis=1) == predicted).all()
    # A value here and there, as float16 overflows, costs little.
    broken_train, broken_test = train.copy(), test.copy()
    broken_train[::7, 3], broken_test[::5, 4], broken_test[1] = np.inf, -np.inf, np.nan
    probe = fit_probe(broken_train, labels, 3)
    assert np.isfinite(probe.logits(broken_test)).all()
    assert accuracy(probe, broken_test, test_labels) > accuracy(plain, test, test_labels) - 0.15


def test_float16_features_give_the_same_accuracy_within_noise(rng: np.random.Generator) -> None:
    train, labels, test, test_labels = draw(rng, classes=5, per_class=20, width=30)
    wide = accuracy(fit_probe(train, labels, 5), test, test_labels)
    narrow = accuracy(fit_probe(train.astype(np.float16), labels, 5), test.astype(np.float16), test_labels)
    assert narrow == pytest.approx(wide, abs=0.02)


def test_nearest_mean_takes_over_where_ridge_would_take_too_long(rng: np.random.Generator) -> None:
    train, labels, test, test_labels = draw(rng, classes=4, per_class=15, width=6, noise=1.0)
    # The third class has no image.
    kept = labels != 2
    means = np.array([train[kept & (labels == label)].mean(axis=0) for label in (0, 1, 3)])
    deviation = train[kept].std(axis=0)
    distances = np.square((test[:, None] - means) / deviation).sum(axis=2)
    assert not reference_probe._is_too_large(images=12_000, width=2_560)
    assert reference_probe._is_too_large(images=1_000_000, width=1_280)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_probe, "_MAX_MULTIPLICATIONS", 0)
        probe = fit_probe(train[kept], labels[kept], 4)
    assert (probe.method, probe.facts) == (NEAREST_MEAN, {})
    predicted = probe.logits(test).argmax(axis=1)
    assert (predicted == np.array([0, 1, 3])[distances.argmin(axis=1)]).all()
    assert np.isfinite(probe.logits(test)).all()
    assert 0.4 < (predicted == test_labels).mean() <= 0.75


@pytest.mark.parametrize("features", [np.ones((6, 5), np.float32), np.full((6, 5), np.nan, np.float32)])
def test_features_that_say_nothing_give_the_most_frequent_class(features: np.ndarray) -> None:
    probe = fit_probe(features, np.array([0, 1, 1, 1, 2, 2]), 3)
    assert probe.logits(features).argmax(axis=1).tolist() == [1] * 6


# --- the result of a run ------------------------------------------------------


def test_result_has_metrics_with_interval_n_and_pair_and_a_line_of_80_columns() -> None:
    validation = Reference(Proportion(9_000, 12_000), Proportion(9_100, 12_000))
    tested = Reference(Proportion(90, 100), Proportion(80, 100), PairedOutcome(gained=2, lost=12, n=100, split="test"))
    result = ReferenceResult("nearest mean", {"val": validation, "test": tested}, None, {"penalty": 64.0}, 0.5)
    metrics = result.metrics()
    assert (metrics["reference/penalty"], metrics["seconds/reference"]) == (64.0, 0.5)
    assert (metrics["reference/val_accuracy"], metrics["reference/val_n"]) == (0.75, 12_000)
    low, high = tested.probe.interval
    assert (metrics["reference/test_accuracy_low"], metrics["reference/test_accuracy_high"]) == (low, high)
    assert (metrics["reference/test_difference"], metrics["reference/test_gained"]) == (-0.1, 2)
    assert (metrics["reference/test_lost"], metrics["reference/test_p_value"]) == (12, tested.pair.p_value)
    # Of validation only accuracies are known.
    assert "reference/val_p_value" not in metrics
    assert result.deciding is tested
    assert result.tags() == {"reference": "nearest mean"}
    assert result.lines() == ["reference  test 90.0 % (95 % interval 82.6–94.5, n = 100): nearest mean"]
    (line,) = ReferenceResult("nearest mean", {"val": validation}).lines()
    assert len(line) <= 80


def test_result_without_a_probe_says_why() -> None:
    none = ReferenceResult("the whole network trains")
    assert (none.deciding, none.metrics(), none.tags()) == (None, {}, {"reference": "the whole network trains"})
    assert none.lines() == ["reference  none: the whole network trains"]
