"""MLflow's model registry: versions of a registered model, and the alias that points to one of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dogbreeds.core.errors import UserError
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record

if TYPE_CHECKING:
    import mlflow

# Folder of the exported formats among a run's artifacts.
EXPORT_FOLDER = "exported"


@dataclass(frozen=True)
class Version:
    """Version of a registered model.

    Attributes:
        name: name of the registered model.
        number: version number.
        run_id: run that trained it.
    """

    name: str
    number: str
    run_id: str


def version_by_alias(tracking: Mlflow, name: str, alias: str) -> Version | None:
    """Return the version of a registered model that an alias points to, if any.

    Args:
        tracking: store with the registry.
        name: name of the registered model.
        alias: the alias, such as `champion`.
    """
    client = _client(tracking)
    for model in client.search_registered_models(_name_condition(name)):
        number = dict(model.aliases).get(alias)
        if number is not None:
            return Version(name, str(number), client.get_model_version(name, str(number)).run_id)
    return None


def promote(
    tracking: Mlflow,
    name: str,
    alias: str,
    before: Version | None,
    record: Record,
    model_id: str,
    tags: dict[str, str],
) -> Version:
    """Register a logged model and point the alias to it.

    The alias moves last, so that an interruption leaves it where it was. A version that an interrupted command has
    registered is reused.

    Args:
        tracking: store with the registry.
        name: name of the registered model.
        alias: the alias to move.
        before: version that the alias pointed to when the model passed the gate.
        record: run that trained the model.
        model_id: id of the logged model.
        tags: tags of the version.

    Raises:
        UserError: the alias points to another version by now.
    """
    client = _client(tracking)
    data = record.params["data.name"]
    if not client.search_registered_models(_name_condition(name)):
        client.create_registered_model(
            name,
            description=f"Image classifier, first of {data}: takes images of any size, returns class names and"
            " probabilities.",
        )
    source = f"models:/{model_id}"
    registered = [
        found
        for found in client.search_model_versions(f"{_name_condition(name)} and run_id = '{record.run_id}'")
        if found.source == source
    ]
    model_version = (
        registered[0]
        if registered
        else client.create_model_version(
            name,
            source,
            record.run_id,
            description=f"{record.params['model.architecture']} on {data}, {record.params['data.classes']} classes.",
            model_id=model_id,
        )
    )
    number = str(model_version.version)
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)
    if version_by_alias(tracking, name, alias) != before:
        raise UserError(
            f"{name}@{alias} was moved to another version by another command meanwhile. A model must beat the version"
            " that the alias points to. Run the same command again."
        )
    client.set_registered_model_alias(name, alias, number)
    return Version(name, number, record.run_id)


def _name_condition(name: str) -> str:
    """Return a search condition for a name. MLflow's syntax has no escapes, but two kinds of quotes."""
    quote = '"' if "'" in name else "'"
    return f"name = {quote}{name}{quote}"


def _client(tracking: Mlflow) -> "mlflow.MlflowClient":
    return tracking.connect()[0]
