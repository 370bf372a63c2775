"""What a trainer rank does with a trained model: compute its nodes, then write or score them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from distsage.config import EvaluateConfig, ModelJobConfig, PredictConfig
from distsage.features.rows import PULL_ROWS
from distsage.kernels import level
from distsage.launch import job as bring_up
from distsage.launch.dgl.client import GraphStore
from distsage.launch.job import Job
from distsage.launch.watch.progress import State, Watched
from distsage.limits import hold_to, take_share
from distsage.model.backend import set_threads
from distsage.model.inference import working_bytes
from distsage.prediction.output import WRITING_BYTES, OutputDirectory, rows_folder
from distsage.prediction.part_rows import rows_of_parts
from distsage.prediction.rooms import BoundedRooms
from distsage.prediction.run import TrainedModel, load_model, to_write
from distsage.prediction.scores import lines, masks_of
from distsage.prediction.selection import choose
from distsage.prediction.trained import EVALUATION
from distsage.train.collectives import EXCHANGE_BYTES, Collectives
from distsage.train.evaluation import score_masks, scoring_bytes
from distsage.train.halo_inference import HaloInference
from distsage.train.local import without_edges

_BYTES_PER_NODE = 12
"""Of the whole graph: whether a node is of the halo, and its row's number; about."""
_PULLS = 3
"""Copies of a piece of rows while it is pulled; about."""


def run(job: Job[ModelJobConfig], watched: Watched) -> None:
    """Connect, compute, say goodbye. Collective over the trainers."""
    store = bring_up.connect(job, watched)
    set_threads(torch.device("cpu"))
    trainers = Collectives(job.assignment.trainer_rank, job.assignment.num_trainers)
    work = _Work(job, store, trainers, watched)
    if isinstance(job.config.asked, PredictConfig):
        work.predict(job.config.asked)
    else:
        work.evaluate(job.config.asked)
    watched.mark("saying goodbye", State.WAITING)
    store.close()
    torch.distributed.destroy_process_group()


class _Work:
    """What one trainer can do; both methods are collective."""

    def __init__(
        self,
        job: Job[ModelJobConfig],
        store: GraphStore,
        trainers: Collectives,
        watched: Watched,
    ) -> None:
        self._job, self._store, self._trainers, self._mark = job, store, trainers, watched.mark
        self._model: TrainedModel = load_model(job.config.asked.run_dir)
        if job.dgl.feature_scale is not None:
            self._model.network.scale_inputs(torch.from_numpy(job.dgl.feature_scale))
        self._bounds = job.parts.trainer_bounds(job.assignment.pairs_per_host)
        first, last = self._bounds[trainers.rank : trainers.rank + 2]
        self._first, self._last = int(first), int(last)
        self._low, self._high = job.parts.nodes(job.assignment.host)
        self._ids = job.parts.parts.original_ids()[self._low : self._high]

    def _mask(self, name: str) -> np.ndarray:
        """Of this host's nodes."""
        return self._store.own_rows(f"{name}_mask").numpy().astype(bool)

    def _everyone(self, found: np.ndarray) -> np.ndarray:
        return self._trainers.sum(torch.from_numpy(found)).numpy()

    def _rows(self, num_layers: int | None, rooms: BoundedRooms) -> Tensor:
        """The rows of this trainer's nodes after so many layers; the last one that all trainers
        have finished already is not computed again."""
        topology = self._job.parts.parts.topology()
        if self._model.description["config"].get("ignore_edges"):
            topology = without_edges(topology)
        part = self._low, self._high
        halo = HaloInference(topology, self._bounds, part, self._trainers, self._mark, rooms)
        return halo.run(
            self._model.network,
            self._store.own_features(),
            lambda gids: self._store.pull_features(gids.numpy()),
            num_layers,
            done=self._done(num_layers or len(self._model.network.layers), rooms),
        )

    def _done(self, num_layers: int, rooms: BoundedRooms) -> tuple[int, Tensor] | None:
        finished = np.zeros(num_layers, np.int64)
        finished[rooms.finished(num_layers)] = 1
        by_all = np.flatnonzero(self._everyone(finished) == self._trainers.size)
        if not len(by_all):
            return None
        last = int(by_all[-1])
        rooms.forget(last - 1)
        return last, rooms.taken_up(last)

    def predict(self, asked: PredictConfig) -> None:
        """Compute this trainer's nodes, and write the parts that fall to it."""
        trainers = self._trainers
        output = OutputDirectory(asked.output, self._job.config.about)
        folder = rows_folder(asked.output, is_file=False) / f"trainer-{trainers.rank}"
        with BoundedRooms(folder) as rooms:
            about = {
                "predictions": self._job.config.about,
                "nodes": [self._first, self._last],
                "kernels": str(level.chosen()),
            }
            self._prepare(rooms, asked.memory_bytes, WRITING_BYTES, about)
            trainers.barrier()
            if trainers.rank == 0:
                output.begin()
            self._write_parts(asked, output, rooms)
        self._mark("waiting for all parts to be written", State.WAITING)
        trainers.barrier()
        if trainers.rank == 0:
            num_rows = output.finish(self._job.parts.parts.num_parts)
            print(f"{asked.what} of {num_rows:,} nodes written to {asked.output}", flush=True)

    def _prepare(
        self,
        rooms: BoundedRooms,
        memory: int | None,
        beside: int,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Bound what this trainer may take, before any of the machine takes some.

        `beside` are the bytes that it takes when the rows are there, `about` what these depend on.
        """
        config, manifest = self._job.config, self._job.parts.parts.manifest
        everyone_here = config.emulated_hosts is not None
        assignment = self._job.assignment
        hold_to(memory)
        take_share(assignment.num_trainers if everyone_here else assignment.pairs_per_host)
        self._trainers.barrier()
        own = self._store.own_features()
        pulled = _PULLS * PULL_ROWS * own.nbytes // max(len(own), 1)
        rooms.prepare(
            working_bytes(self._model.network, sparse=manifest.features.is_sparse)
            + beside
            + max(pulled, EXCHANGE_BYTES)
            + _BYTES_PER_NODE * manifest.num_nodes,
            about,
        )

    def _write_parts(
        self, asked: PredictConfig, output: OutputDirectory, rooms: BoundedRooms
    ) -> None:
        parts, task = self._job.parts.parts, self._model.description["task"]
        self._mark("choosing nodes", State.LOADING)
        chosen = self._low + np.flatnonzero(
            choose(asked.nodes, self._ids, self._mask, self._everyone)
        )
        rows = self._rows(self._job.config.about["layer"], rooms)

        def sent() -> None:
            self._mark("sending rows to those that write them", State.WAITING)

        for part, gids, take in rows_of_parts(
            rows, chosen, parts.offsets, self._bounds, self._trainers, sent, rooms.table
        ):
            self._mark(f"writing part {part}", State.LOADING)
            if not output.written(part):
                nodes = gids - self._low
                made = to_write(self._ids, nodes, rows.shape[1], take, asked.what, task)
                output.write_part(part, *made)

    def evaluate(self, asked: EvaluateConfig) -> None:
        """Compute this trainer's nodes, and score them together with everybody else's."""
        trainers, num_nodes = self._trainers, self._job.parts.parts.manifest.num_nodes
        own = slice(self._first - self._low, self._last - self._low)
        folder = asked.run_dir / EVALUATION / f"rows-trainer-{trainers.rank}"
        with BoundedRooms(folder, "evaluating", "--run-dir") as rooms:
            beside = scoring_bytes(self._model.network, num_nodes)
            self._prepare(rooms, asked.memory_bytes, beside)
            labels = self._store.own_rows("labels")[own]
            masks = masks_of(
                asked.nodes,
                np.asarray(self._ids[own]),
                labels,
                lambda name: self._mask(name)[own],
                self._everyone,
            )
            scores = score_masks(self._rows(None, rooms), labels, masks, trainers)
        if trainers.rank == 0:
            print(lines(scores, self._model.description), flush=True)
