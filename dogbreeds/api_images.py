"""The Python API of what is asked of images before any training. `import dogbreeds` offers it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreeds.api import compose
from dogbreeds.cli import compose_command
from dogbreeds.data.corrections import open_corrected
from dogbreeds.experiments import audit, backbone_probe
from dogbreeds.experiments.compose import config_sources
from dogbreeds.experiments.isolation import python_call
from dogbreeds.experiments.plugins import with_plugins
from dogbreeds.experiments.probe_models import Probe, compose_models, probe_origin
from dogbreeds.experiments.probe_recording import recorded
from dogbreeds.experiments.python_runs import with_dataset

if TYPE_CHECKING:
    from dogbreeds.data.dataset import Dataset
    from dogbreeds.evaluation.audit import Audit
    from dogbreeds.evaluation.backbone_probe import BackboneProbe


@python_call()
def probe_backbones(
    models: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    dataset: "Dataset | None" = None,
    config_dir: str | Path | None = None,
    plugins: Sequence[str] = (),
) -> "BackboneProbe":
    """Compare backbones on the same images by linear classifiers of their frozen features, before any training.

    Examples:
        >>> probe = db.probe_backbones(["miniature", "miniature model.weights=null"], ["data.classes=12"])
        >>> probe.best.name, probe.best.linear.n, probe.as_good
        ('miniature', 120, ())

    Args:
        models: options of the group `model`. Settings of one follow its name: `"mobilenetv2 model.alpha=0.35"`.
        overrides: of the command `probe`, such as `data=folder` or `probe.images=null`; they hold for all backbones.
        dataset: images to use instead of those of the overrides: see `Dataset.from_arrays`.
        config_dir, plugins: as for `compose`.

    Raises:
        MissingFileError, UserError: if a name or a setting is not allowed, or no backbone can be probed.
    """
    overrides = with_plugins(overrides, plugins)
    sources = config_sources(config_dir)
    config = compose_command("probe", overrides, sources)
    composed = compose_models(models, overrides, sources, is_provided=dataset is not None)
    dataset = open_corrected(composed[0].run.data, dataset)
    with recorded(composed, probe_origin(config, overrides, composed)) as record:
        probe = backbone_probe.probe_backbones(composed, Probe.of(config).images, dataset)
        record(probe)
    return probe


@python_call()
def audit_dataset(
    overrides: Sequence[str] = (), *, dataset: "Dataset | None" = None, output: str | Path | None = None
) -> "Audit":
    """List what is wrong with images: near-duplicates, likely label errors, outliers, low quality.

    Examples:
        >>> audit = db.audit_dataset(["data.classes=12"])
        >>> len(audit.ids), sorted({finding.finding for finding in audit.findings} - {"label_error", "outlier"})
        (480, [])

    Args:
        overrides: of the command `audit`, such as `model=effnetb0`, `data=folder`, `data.root=photos`.
        dataset: images to use instead of those of the overrides: see `Dataset.from_arrays`.
        output: folder for `audit.csv` and `audit.html`; None writes nothing.

    Raises:
        MissingFileError, UserError: if cleanlab, data or weights are missing, or a setting is not allowed.
    """
    run = compose(overrides)
    run = run if dataset is None else with_dataset(run)
    found, images = audit.audit_dataset(run, dataset)
    if output is not None:
        audit.write(found, images, Path(output))
    return found
