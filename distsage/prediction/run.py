"""What a trained model says of every node, by original id. Runs on one machine, without MPI.

Imports DGL only where the data lie in DGL's files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from torch import Tensor

from distsage.config import IN_MEMORY, PredictConfig, ReadingOptions
from distsage.data.encoding import Encoding, disagreement
from distsage.data.graph import Graph
from distsage.errors import UserError
from distsage.features.matrix import feature_rows
from distsage.files import atomic_file
from distsage.model.backend import set_threads
from distsage.model.graphsage import GraphSAGE
from distsage.model.inference import infer
from distsage.partitioning.verify import load_parts
from distsage.progress import progress
from distsage.train.local import without_edges
from distsage.train.run_directory import RunDirectory

# Rows that are turned into a table at a time.
_TABLE_ROWS = 1 << 18


What = Literal["probabilities", "embeddings"]


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


def predict(model: TrainedModel, graph: Graph, what: What = "probabilities") -> np.ndarray:
    """Apply a model to all nodes of a graph, from whole neighbourhoods as in an evaluation.

    Computes on the CPU; holds two layers' rows of all nodes.

    Args:
        model: of a run on this graph, or on another with the same features and classes.
        graph: its labels and masks do not matter.
        what: class probabilities, or the input of the last layer.

    Returns:
        float32 `[N, C]` or, for embeddings, `[N, H]`. Row v is of node v, whose name in the data is
        `graph.original_ids[v]`. Probabilities of a node add up to 1, except where nodes have
        several labels.

    Raises:
        UserError: the graph has other features or classes than the model.
    """
    set_threads(torch.device("cpu"))
    network, description = model.network, model.description
    for counted, trained, found in (
        ("features", network.shape["in_features"], graph.num_features),
        ("classes", network.shape["num_classes"], graph.num_classes),
    ):
        if trained != found:
            raise UserError(
                f"the model in {model.run_dir} was trained on {trained} {counted} but the graph "
                f"{graph.name} has {found}; name the graph that it was trained on"
            )
    topology = graph.topology
    if description["config"].get("ignore_edges"):
        topology = without_edges(topology)
    last = network.shape["num_layers"] - (what == "embeddings")
    rows = feature_rows(graph.features)
    with progress("predicting", graph.num_nodes * last, "rows") as advance:
        values = infer(network, topology, rows, last, advance)
    if what == "probabilities":
        values = _probabilities(values, multilabel=description["task"] == "multilabel")
    return values.numpy()


def write_predictions(config: PredictConfig) -> None:
    """Rebuild a run's model, apply it to all nodes and write the result; the file appears whole.

    The rows are in the order of the original ids.

    Raises:
        UserError: there is no such run, its graph is not to be found or does not fit its model, or
            the output cannot be written.
    """
    _check_output(config.output)
    model = load_model(config.run_dir)
    graph = _load_graph(config, model.description)
    values = predict(model, graph, config.what)
    ids = np.arange(graph.num_nodes) if graph.original_ids is None else graph.original_ids
    order = np.argsort(ids, kind="stable")
    try:
        _write(config.output, np.asarray(ids)[order], values[order], config.what[0])
    except OSError as error:
        raise UserError(f"cannot write --output {config.output}: {error.strerror}") from error
    print(f"{config.what} of {graph.num_nodes:,} nodes written to {config.output}")


def _check_output(path: Path) -> None:
    """See that `path` can be written, before the work."""
    if path.is_dir():
        raise UserError(f"--output {path} is a directory; name a file")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no directory {path.parent}; make it first")


def _load_graph(config: PredictConfig, description: Mapping[str, Any]) -> Graph:
    """The graph that the run was trained on, or one like it, read as the run read it.

    Args:
        config: says where the graph lies now, if it has moved, or which other one to take.
        description: what the run's model file says beside the weights.
    """
    trained = description["config"]
    if trained.get("dataset") == IN_MEMORY:
        raise UserError(
            f"the model in {config.run_dir} was trained on a graph in memory; in Python, give that "
            "graph to distsage.predict"
        )
    saved = description.get("encoding")
    encoding = None if saved is None else Encoding.from_json(saved)
    parts, dataset = config.parts, config.dataset
    recorded = trained.get("parts") or trained.get("conf_file")
    reading = trained
    if recorded is not None and dataset is not None:
        # The model says how its parts were read, if `distsage train` made it.
        reading = description["content"]
        if reading.get("feature_norm") is None:
            raise UserError(
                f"the model in {config.run_dir} was trained on the parts {recorded}, not on a "
                "dataset; name where they lie now with --parts"
            )
    elif recorded is not None and parts is None:
        parts = Path(recorded)
        if not parts.exists():
            raise UserError(
                f"the parts that the model in {config.run_dir} was trained on, {parts}, are not "
                "there; name where they lie now with --parts"
            )
    if parts is not None:
        graph = load_parts(parts)[0]
        difference = disagreement(encoding, graph.encoding)
        if difference is not None:
            raise UserError(
                f"the features in the parts {parts} are not those of the model in "
                f"{config.run_dir}: {difference}; name the parts that it was trained on, or what "
                "they were made of with --dataset"
            )
        return graph
    from distsage.data.datasets import load_graph

    options = {
        option.name: reading.get(option.name, option.default) for option in fields(ReadingOptions)
    }
    if options["feature_norm"] == "standard":
        options["feature_norm"] = "none"  # the encoding has the run's numbers, if there are any
    if options["dataset_root"] is not None:
        options["dataset_root"] = Path(options["dataset_root"])
    return load_graph(
        dataset or trained["dataset"], **options, seed=trained["seed"], encoding=encoding
    )


def _probabilities(logits: Tensor, multilabel: bool) -> Tensor:
    """Of each class: they add up to 1, or with several labels per node each stands alone."""
    return torch.sigmoid(logits) if multilabel else torch.softmax(logits, 1)


def _write(path: Path, ids: np.ndarray, values: np.ndarray, prefix: str) -> None:
    """Write ids `[N]` and values `[N, D]`: an .npz of the two, or a table of id, p0, p1, ..."""
    with atomic_file(path) as stream:
        if path.suffix == ".npz":
            np.savez(stream, ids=ids, values=values)
            return
        names = ["id", *(f"{prefix}{column}" for column in range(values.shape[1]))]
        id_type = pa.int64() if ids.dtype.kind == "i" else pa.string()
        schema = pa.schema([("id", id_type), *((name, pa.float32()) for name in names[1:])])
        if path.suffix == ".parquet":
            with pa.parquet.ParquetWriter(stream, schema) as writer:
                for batch in _batches(ids, values, schema):
                    writer.write_batch(batch)
            return
        stream.write((",".join(names) + "\n").encode())  # pyarrow would quote the names
        options = pa.csv.WriteOptions(include_header=False)
        with pa.csv.CSVWriter(stream, schema, write_options=options) as writer:
            for batch in _batches(ids, values, schema):
                writer.write_batch(batch)


def _batches(ids: np.ndarray, values: np.ndarray, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(ids), _TABLE_ROWS):
        rows = slice(start, start + _TABLE_ROWS)
        columns = [ids[rows], *np.ascontiguousarray(values[rows].T)]
        yield pa.record_batch(
            [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)],
            schema=schema,
        )
