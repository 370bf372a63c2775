"""What a trained model says of nodes, by original id. Runs on one machine, without MPI.

Imports DGL only where a dataset lies in DGL's files.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distsage.config import NODES, ModelOptions, PredictConfig, ReadingOptions
from distsage.data.graph import Graph, Topology
from distsage.errors import UserError
from distsage.features.matrix import feature_scales
from distsage.features.stored import StoredFeatures
from distsage.kernels import level
from distsage.model.backend import set_threads
from distsage.model.graphsage import GraphSAGE
from distsage.model.inference import IN_MEMORY, Rooms, infer, working_bytes
from distsage.partitioning.parts import Parts
from distsage.partitioning.verify import verify
from distsage.prediction import trained
from distsage.prediction.output import (
    WRITING_BYTES,
    MadeRows,
    OutputDirectory,
    begin_file,
    check_file,
    rows_folder,
    write_file,
)
from distsage.prediction.rooms import BoundedRooms
from distsage.prediction.selection import choose
from distsage.progress import progress
from distsage.train.local import checksum_of, without_edges
from distsage.train.run_directory import RunDirectory

What = Literal["probabilities", "logits", "embeddings"]

_BYTES_PER_NODE = 40
"""Numbers of nodes, which are chosen and sorted; about."""


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


@dataclass(frozen=True)
class Subject:
    """A graph that a model is applied to. What is not asked for is not read.

    Attributes:
        name: of the graph.
        topology: in-edges of all N nodes.
        features: float32.
        scales: gives the scales of their columns for int8, as `feature_scales` does.
        ids: int64 or unicode `[N]`, the original ids; may be a memory map.
        data: labels, train_mask, val_mask or test_mask of the nodes of a part, as a `Graph` has
            them; may be a memory map that begins at any byte, and masks may be numbers.
        offsets: int64 `[P + 1]`, the bounds of its parts; a dataset is one part.
        checksum: of all that; empty for a graph in memory.
    """

    name: str
    topology: Topology
    features: StoredFeatures
    scales: Callable[[], np.ndarray | None]
    ids: np.ndarray
    data: Callable[[str, int], np.ndarray]
    offsets: np.ndarray
    checksum: str

    @classmethod
    def of_graph(cls, graph: Graph, checksum: str = "") -> "Subject":
        """A graph in memory."""
        count = graph.num_nodes
        return cls(
            name=graph.name,
            topology=graph.topology,
            features=StoredFeatures.of_matrix(graph.features),
            scales=lambda: feature_scales(graph.features),
            ids=np.arange(count) if graph.original_ids is None else graph.original_ids,
            data=lambda name, _: np.asarray(getattr(graph, name)),
            offsets=np.array([0, count]),
            checksum=checksum,
        )

    @classmethod
    def of_parts(cls, parts: Parts) -> "Subject":
        """The graph that some parts are of.

        Raises:
            UserError: a file cannot be read, or is not the one that was written.
        """
        verify(parts)
        return cls(
            name=parts.manifest.graph_name,
            topology=parts.topology(),
            features=StoredFeatures.of_parts(parts),
            scales=parts.feature_scales,
            ids=parts.original_ids(),
            data=lambda name, part: parts.map_part(part)[name],
            offsets=parts.offsets,
            checksum=parts.manifest.checksum,
        )

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.topology.num_nodes

    @property
    def about(self) -> dict[str, Any]:
        """Which graph it is."""
        return {
            "name": self.name,
            "nodes": self.num_nodes,
            "edges": self.topology.num_edges,
            "checksum": self.checksum,
        }

    def mask(self, name: str) -> np.ndarray:
        """The mask called train, val or test, of all nodes: bool `[N]`."""
        of_parts = [self.data(f"{name}_mask", part) for part in range(len(self.offsets) - 1)]
        return np.concatenate([rows.astype(bool) for rows in of_parts])

    def labels(self, rooms: Rooms) -> Tensor:
        """Of all nodes, where `rooms` puts them: int64 `[N]`, -1 for none, or float32 `[N, C]`."""
        shape = self.num_nodes, *self.data("labels", 0).shape[1:]
        dtype = torch.int64 if len(shape) == 1 else torch.float32
        labels = rooms.table(*shape, dtype=dtype)
        for part in range(len(self.offsets) - 1):
            low, high = self.offsets[part : part + 2]
            labels.numpy()[low:high] = self.data("labels", part)
        return labels


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
    rows = rows_of(model, Subject.of_graph(graph), num_layers)
    return answers(rows, what, description["task"]).numpy()


def prepare(rooms: BoundedRooms, model: TrainedModel, subject: Subject, beside: int) -> None:
    """See that there is memory for all but the rows of a subject. Comes before the first room.

    Layers that a process with the same model, graph and kernels has finished are taken up then.

    Args:
        rooms: for the rows.
        model: to apply.
        subject: to apply it to.
        beside: bytes that the caller takes as well.

    Raises:
        UserError: there is too little memory.
    """
    rooms.prepare(
        working_bytes(model.network, sparse=subject.features.is_sparse)
        + beside
        + _BYTES_PER_NODE * subject.num_nodes,
        {
            "model": trained.identity(model.run_dir, model.description),
            "graph": subject.about,
            "kernels": str(level.chosen()),
        },
    )


def rows_of(
    model: TrainedModel, subject: Subject, num_layers: int, rooms: Rooms = IN_MEMORY
) -> Tensor:
    """Every node's row after so many layers: float32, on the CPU, where `rooms` puts it."""
    set_threads(torch.device("cpu"))
    config = model.description["config"]
    topology = without_edges(subject.topology) if config.get("ignore_edges") else subject.topology
    dtype, scale = config.get("feat_dtype", "float32"), None
    network = model.network
    if dtype == "int8":
        scale = subject.scales()
    if scale is not None:
        network = copy.deepcopy(network)  # its weights stay those of features as they are
        network.scale_inputs(torch.from_numpy(scale))
    features = replace(subject.features, dtype=dtype, scale=scale)
    with progress("predicting", subject.num_nodes * num_layers, "rows") as advance:
        return infer(network, topology, features, num_layers, advance, rooms)


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
        UserError: there is no such run, its graph is not to be found or does not fit its model, the
            output cannot be written, or there is too little memory.
    """
    if config.is_file:
        check_file(config.output)
    model = load_model(config.run_dir)
    description = model.description
    trained.num_layers_of(config.run_dir, description, config.what, config.layer)
    masks = [f"{config.nodes}_mask"] if config.nodes in NODES[1:] else []
    with BoundedRooms(rows_folder(config.output, is_file=config.is_file)) as rooms:
        subject = load_graph_of(config, description, rooms, masks)
        about = trained.about_predictions(config, description, subject.about)
        directory = OutputDirectory(config.output, about)
        if not config.is_file and directory.is_whole():
            print(f"{config.output} is whole already")
            return
        rooms.own()  # so that nobody else writes this output
        if config.is_file:
            begin_file(config.output)
        chosen = np.flatnonzero(choose(config.nodes, subject.ids, subject.mask))
        if not len(chosen):
            raise UserError(
                f"the graph {subject.name} has no {config.nodes} nodes; predict for all of its "
                "nodes, or name some by their original ids in a file, with --nodes"
            )
        prepare(rooms, model, subject, WRITING_BYTES)
        rows = rows_of(model, subject, about["layer"], rooms)

        def written(nodes: np.ndarray) -> tuple[MadeRows, MadeRows]:
            return to_write(
                subject.ids,
                nodes,
                rows.shape[1],
                lambda some: rows[torch.from_numpy(nodes[some])],
                config.what,
                description["task"],
            )

        if config.is_file:
            order = np.argsort(subject.ids[chosen], kind="stable")
            write_file(config.output, about["columns"], *written(chosen[order]))
        else:
            directory.begin()
            bounds = np.searchsorted(chosen, subject.offsets)
            for part in range(len(subject.offsets) - 1):
                if not directory.written(part):
                    directory.write_part(part, *written(chosen[slice(*bounds[part : part + 2])]))
            directory.finish(len(subject.offsets) - 1)
    print(f"{config.what} of {len(chosen):,} nodes written to {config.output}")


def to_write(
    ids: np.ndarray,
    nodes: np.ndarray,
    width: int,
    take: Callable[[slice], Tensor],
    what: What,
    task: str,
) -> tuple[MadeRows, MadeRows]:
    """The original ids of some nodes, and the answers, to be made as they are written.

    Args:
        ids: int64 or unicode, original ids.
        nodes: int64 `[n]`, positions in `ids`.
        width: D.
        take: copies a range of these nodes' rows, float32 `[., D]`, of the model's layer.
        what, task: as for `answers`.
    """
    return (
        MadeRows(nodes.shape, ids.dtype, lambda some: np.asarray(ids[nodes[some]])),
        MadeRows(
            (len(nodes), width),
            np.dtype(np.float32),
            lambda some: answers(take(some), what, task).numpy(),
        ),
    )


def load_graph_of(
    config: ModelOptions,
    description: Mapping[str, Any],
    rooms: BoundedRooms,
    only_masks: Collection[str] | None = None,
) -> Subject:
    """The graph that the run was trained on, or one like it, read as the run read it.

    Args:
        config: says where the graph lies now, if it has moved, or which other one to take. With a
            bound on memory, what of a dataset need not be in memory is not.
        description: what the run's model file says beside the weights.
        rooms: where that is put then.
        only_masks: as for `load_graph`.

    Raises:
        UserError: it is not to be found, cannot be read, or does not fit the model.
    """
    saved = description["config"]
    path = trained.parts_of(config.run_dir, config.parts, config.dataset, description)
    if path is not None:
        parts = trained.open_parts(config.run_dir, description, path)
        return Subject.of_parts(parts)
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
    rows_divided = description.get("rows_divided")
    if rows_divided is not None:
        # Whether they are stored sparse or not this time. What was standardised, the encoding says.
        options["feature_norm"] = "row" if rows_divided else "none"
    elif options["feature_norm"] == "standard":
        options["feature_norm"] = "none"
    if options["dataset_root"] is not None:
        options["dataset_root"] = Path(options["dataset_root"])
    graph = load_graph(
        config.dataset or saved["dataset"],
        **options,
        seed=reading.get("split_seed", saved["seed"]),
        encoding=trained.encoding_of(description),
        only_masks=only_masks,
        scratch=None if config.memory is None else rooms.scratch("dataset"),
    )
    trained.check_fit(config.run_dir, description, graph)
    return Subject.of_graph(graph, checksum_of(graph))
