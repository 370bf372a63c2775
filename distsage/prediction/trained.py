"""What a run says of its model, and whether a graph fits it. Runs on rank 0 and on one machine.

Imports no torch: rank 0 asks before the ranks have agreed on anything.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors

from distsage.config import IN_MEMORY, PredictConfig
from distsage.data.encoding import Encoding, disagreement
from distsage.data.graph import Graph
from distsage.errors import UserError
from distsage.partitioning.manifest import Manifest
from distsage.partitioning.parts import Parts, sha256

MODEL = "model.safetensors"
EVALUATION = "evaluation"
"""What scoring a model keeps in its run directory: a job's logs; meanwhile, rows without room."""


def describe(run_dir: Path) -> dict[str, Any]:
    """What the model of a run says of itself; its checksum is for whoever loads the weights.

    Raises:
        UserError: there is no such run, or its model is damaged.
    """
    path = run_dir / MODEL
    try:
        with open(path, "rb"):  # an OSError that says what is wrong; safetensors' own does not
            pass
        with safetensors.safe_open(path, framework="np") as file:
            description = json.loads((file.metadata() or {})["distsage"])
        shape = description["model"]
        _ = shape["in_features"], shape["num_classes"], shape["hidden"], shape["num_layers"]
        _ = description["config"]["seed"], description["task"], description["epoch"]
    except OSError as error:
        raise UserError(
            f"{run_dir} holds no trained model (cannot read {MODEL}: {error.strerror}); name the "
            "--run-dir of a run"
        ) from error
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged; train again") from error
    return dict(description)


def identity(run_dir: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """Which model it is: of which epoch, and the checksum of its file."""
    return {"epoch": description["epoch"], "sha256": sha256(run_dir / MODEL)}


def parts_of(
    run_dir: Path, parts: Path | None, dataset: str | None, description: Mapping[str, Any]
) -> Path | None:
    """The parts to work on: those that are named, or those of the training; None for a dataset.

    Raises:
        UserError: the run was trained on a graph in memory, or on parts that are gone.
    """
    if description["config"].get("dataset") == IN_MEMORY:
        raise UserError(
            f"the model in {run_dir} was trained on a graph in memory; in Python, give that "
            "graph to distsage.predict"
        )
    if parts is not None or dataset is not None:
        return parts
    trained = description["config"].get("parts") or description["config"].get("conf_file")
    if trained is None:
        return None
    if not Path(trained).exists():
        raise UserError(
            f"the parts that the model in {run_dir} was trained on, {trained}, are not there; name "
            "where they lie now with --parts"
        )
    return Path(trained)


def check_fit(run_dir: Path, description: Mapping[str, Any], graph: Graph | Manifest) -> None:
    """See that a graph, or the one that parts are of, asks for what the model answers.

    Raises:
        UserError: its nodes have several labels instead of one, or it has other numbers of features
            or classes, where some node is labelled.
    """
    name = graph.graph_name if isinstance(graph, Manifest) else graph.name
    same = "name the graph that it was trained on, or one like it"
    is_labelled = graph.num_classes > 0
    if is_labelled and description["task"] != graph.task:
        ours, theirs = (
            "several labels per node" if task == "multilabel" else "one label per node"
            for task in (description["task"], graph.task)
        )
        raise UserError(
            f"the model in {run_dir} was trained for {ours} but the graph {name} has {theirs}; "
            f"{same}"
        )
    shape = description["model"]
    for counted, trained, found in (
        ("features", shape["in_features"], graph.num_features),
        *([("classes", shape["num_classes"], graph.num_classes)] if is_labelled else []),
    ):
        if trained != found:
            raise UserError(
                f"the model in {run_dir} was trained on {trained} {counted} but the graph "
                f"{name} has {found}; {same}"
            )


def encoding_of(description: Mapping[str, Any]) -> Encoding | None:
    """How the columns of the model's data became features."""
    saved = description.get("encoding")
    return None if saved is None else Encoding.from_json(saved)


def check_features(
    run_dir: Path, description: Mapping[str, Any], parts: Path, found: Manifest
) -> None:
    """See that the features in some parts are those that the model takes.

    Raises:
        UserError: they became features in another way.
    """
    difference = disagreement(encoding_of(description), found.encoding)
    ours, theirs = description.get("rows_divided"), found.rows_divided
    if difference is None and None not in (ours, theirs) and ours != theirs:
        difference = (
            "the model takes rows that were divided by their sums (--feature-norm), and theirs "
            "were not"
            if ours
            else "their rows were divided by their sums (--feature-norm), and the model's were not"
        )
    if difference is not None:
        raise UserError(
            f"the features in the parts {parts} are not those of the model in {run_dir}: "
            f"{difference}; name the parts that it was trained on, or what they were made of with "
            "--dataset"
        )


def open_parts(run_dir: Path, description: Mapping[str, Any], path: Path) -> Parts:
    """Open parts that fit the model, whatever they were trained on.

    Raises:
        UserError: they cannot be opened, or do not fit.
    """
    parts = Parts.open(path)
    check_fit(run_dir, description, parts.manifest)
    check_features(run_dir, description, path, parts.manifest)
    return parts


def num_layers_of(
    run_dir: Path, description: Mapping[str, Any], what: str, layer: int | None
) -> int:
    """After how many layers the answer is there.

    Raises:
        UserError: the model has no such hidden layer.
    """
    total: int = description["model"]["num_layers"]
    if what != "embeddings":
        return total
    if total == 1:
        raise UserError(
            f"the model in {run_dir} has no hidden layer, so it gives no embeddings; predict "
            "--what logits"
        )
    wanted = total - 1 if layer is None else layer
    if not 1 <= wanted < total:
        raise UserError(
            f"the model in {run_dir} has no hidden layer {wanted}; give --layer from 1 to "
            f"{total - 1}"
        )
    return wanted


def about_predictions(
    config: PredictConfig, description: Mapping[str, Any], graph: Mapping[str, Any]
) -> dict[str, Any]:
    """What a manifest says of predictions, beside their files. Two that agree in it are the same.

    Args:
        config: what was asked for.
        description: of the model.
        graph: name, nodes, edges and checksum.
    """
    shape = description["model"]
    num_layers = num_layers_of(config.run_dir, description, config.what, config.layer)
    width = shape["num_classes"] if num_layers == shape["num_layers"] else shape["hidden"]
    nodes: dict[str, Any] = {"chosen": config.nodes}
    if Path(config.nodes).is_file():
        nodes["sha256"] = sha256(Path(config.nodes))
    return {
        "format_version": 1,
        "run": str(config.run_dir.resolve()),
        "model": identity(config.run_dir, description),
        "graph": dict(graph),
        "what": config.what,
        "layer": num_layers,
        "nodes": nodes,
        "columns": ["id", *(f"{config.what[0]}{column}" for column in range(width))],
        "file_format": config.file_format,
    }
