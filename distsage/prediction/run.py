"""What a trained model says of nodes, by original id. Runs on one machine, without MPI.

Imports DGL only where the data lie in DGL's files.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distsage.config import ModelOptions, PredictConfig, ReadingOptions
from distsage.data.graph import Graph
from distsage.errors import UserError
from distsage.features.matrix import dense_table, feature_scales, sparse_rows
from distsage.model.backend import set_threads
from distsage.model.graphsage import GraphSAGE
from distsage.model.inference import infer
from distsage.partitioning.verify import load_parts
from distsage.prediction import trained
from distsage.prediction.output import OutputDirectory, check_file, write_file
from distsage.prediction.selection import choose
from distsage.progress import progress
from distsage.train.local import checksum_of, without_edges
from distsage.train.run_directory import RunDirectory

What = Literal["probabilities", "logits", "embeddings"]


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run's best validation epoch.

    Attributes:
        run_dir: of the run.
        network: the model itself, in evaluation mode, on the CPU; takes batches, not graphs.
        description: what the run says of it: `model` (its widths), `task`, `graph` (a name),
            `epoch`, `val` (its scores), `config` (every option of the run).
    """

    run_dir: Path
    network: GraphSAGE
    description: Mapping[str, Any]


def load_model(run_dir: Path | str) -> TrainedModel:
    """Read the model that a run of `train`, `local` or `distsage.train_local` left behind.

    Raises:
        UserError: there is no such run, or its model is damaged.
    """
    run_dir = Path(run_dir)
    description, weights = RunDirectory(run_dir).load_model()
    try:
        network = GraphSAGE(**description["model"])
        network.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"the model in {run_dir} is damaged: its weights are not those that it describes; "
            "train again"
        ) from error
    return TrainedModel(run_dir, network.eval(), description)


def predict(
    model: TrainedModel, graph: Graph, what: What = "probabilities", layer: int | None = None
) -> np.ndarray:
    """Apply a model to all nodes of a graph, from whole neighbourhoods as in an evaluation.

    Computes on the CPU; holds two layers' rows of all nodes.

    Args:
        model: of a run on this graph, or on another with the same features and classes.
        graph: its masks, and which labels its nodes have, do not matter.
        what: class probabilities, logits, or what a hidden layer says.
        layer: of embeddings: the hidden layer, from 1; None takes the last one.

    Returns:
        float32 `[N, C]` or, for embeddings, `[N, H]`. Row v is of node v, whose name in the data is
        `graph.original_ids[v]`. Probabilities of a node add up to 1, except where nodes have
        several labels.

    Raises:
        UserError: the graph has other features, other classes, or several labels per node where the
            model knows one (or the other way round); or the model has no such layer.
    """
    description = model.description
    trained.check_fit(model.run_dir, description, graph)
    num_layers = trained.num_layers_of(model.run_dir, description, what, layer)
    return answers(rows_of(model, graph, num_layers), what, description["task"]).numpy()


def rows_of(model: TrainedModel, graph: Graph, num_layers: int) -> Tensor:
    """Every node's row after so many layers: float32, on the CPU."""
    set_threads(torch.device("cpu"))
    config = model.description["config"]
    topology = without_edges(graph.topology) if config.get("ignore_edges") else graph.topology
    as_trained = dense_table if isinstance(graph.features, np.ndarray) else sparse_rows
    dtype, scale = config.get("feat_dtype", "float32"), None
    network = model.network
    if dtype == "int8":
        scale = feature_scales(graph.features)
    if scale is not None:
        network = copy.deepcopy(network)  # its weights stay those of features as they are
        network.scale_inputs(torch.from_numpy(scale))
    features = as_trained(graph.features, dtype, scale)
    with progress("predicting", graph.num_nodes * num_layers, "rows") as advance:
        return infer(network, topology, features, num_layers, advance)


def answers(rows: Tensor, what: What, task: str) -> Tensor:
    """The rows of a model's layer as what was asked for.

    Probabilities of the classes add up to 1, or with several labels per node each stands alone.
    """
    if what != "probabilities":
        return rows
    return torch.sigmoid(rows) if task == "multilabel" else torch.softmax(rows, 1)


def write_predictions(config: PredictConfig) -> None:
    """Rebuild a run's model, apply it to nodes and write the result, which appears whole.

    The rows of a file are in the order of the original ids; those of a directory's files are in
    the order of the parts.

    Raises:
        UserError: there is no such run, its graph is not to be found or does not fit its model, or
            the output cannot be written.
    """
    if config.is_file:
        check_file(config.output)
    model = load_model(config.run_dir)
    description = model.description
    trained.num_layers_of(config.run_dir, description, config.what, config.layer)
    graph, offsets, checksum = load_graph_of(config, description)
    trained.check_fit(config.run_dir, description, graph)
    about = trained.about_predictions(
        config,
        description,
        {
            "name": graph.name,
            "nodes": graph.num_nodes,
            "edges": graph.topology.num_edges,
            "checksum": checksum,
        },
    )
    directory = OutputDirectory(config.output, about)
    if not config.is_file and directory.is_whole():
        print(f"{config.output} is whole already")
        return
    ids = np.arange(graph.num_nodes) if graph.original_ids is None else graph.original_ids
    chosen = np.flatnonzero(choose(config.nodes, ids, lambda name: getattr(graph, f"{name}_mask")))
    rows = rows_of(model, graph, about["layer"])[torch.from_numpy(chosen)]
    values = answers(rows, config.what, description["task"]).numpy()
    ids = np.asarray(ids[chosen])
    if config.is_file:
        order = np.argsort(ids, kind="stable")
        try:
            write_file(config.output, about["columns"], ids[order], values[order])
        except OSError as error:
            raise UserError(f"cannot write --output {config.output}: {error.strerror}") from error
    else:
        directory.begin()
        bounds = np.searchsorted(chosen, offsets)
        for part in range(len(offsets) - 1):
            own = slice(*bounds[part : part + 2])
            if not directory.written(part):
                directory.write_part(part, ids[own], values[own])
        directory.finish(len(offsets) - 1)
    print(f"{config.what} of {len(ids):,} nodes written to {config.output}")


def load_graph_of(
    config: ModelOptions, description: Mapping[str, Any]
) -> tuple[Graph, np.ndarray, str]:
    """The graph that the run was trained on, or one like it, read as the run read it.

    Args:
        config: says where the graph lies now, if it has moved, or which other one to take.
        description: what the run's model file says beside the weights.

    Returns:
        The graph, the bounds of its parts (int64 `[P + 1]`; a dataset is one part), and its
        checksum.
    """
    saved = description["config"]
    path = trained.parts_of(config.run_dir, config.parts, config.dataset, description)
    if path is not None:
        parts = trained.open_parts(config.run_dir, description, path)
        return load_parts(path)[0], parts.offsets, parts.manifest.checksum
    reading = saved
    recorded = saved.get("parts") or saved.get("conf_file")
    if recorded is not None:
        # The model says how its parts were read, if `distsage train` made it.
        reading = description["content"]
        if reading.get("feature_norm") is None:
            raise UserError(
                f"the model in {config.run_dir} was trained on the parts {recorded}, not on a "
                "dataset; name where they lie now with --parts"
            )
    from distsage.data.datasets import load_graph

    options = {
        option.name: reading.get(option.name, option.default) for option in fields(ReadingOptions)
    }
    if options["feature_norm"] == "standard":
        options["feature_norm"] = "none"  # the encoding has the run's numbers, if there are any
    if options["dataset_root"] is not None:
        options["dataset_root"] = Path(options["dataset_root"])
    graph = load_graph(
        config.dataset or saved["dataset"],
        **options,
        seed=reading.get("split_seed", saved["seed"]),
        encoding=trained.encoding_of(description),
    )
    return graph, np.array([0, graph.num_nodes]), checksum_of(graph)
