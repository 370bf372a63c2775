"""How fast a core works, measured here or taken from an earlier run. Runs on the login host.

Figures are CPU-seconds of one core for each counted unit, so that other people's work on a login
host does not count, and a plan may divide them by other cores. A step of the model alone is timed
by the clock: CPU-seconds do not tell what its threads gain, and lose by waiting for each other.
"""

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch import Tensor

from distsage.config import TrainConfig
from distsage.data.precision import cast_features
from distsage.data.sparse_rows import SparseRows
from distsage.errors import UserError
from distsage.features.choice import Way, choose_input_layer
from distsage.features.matrix import Features
from distsage.features.slots import (
    InputLayer,
    MultipliedInput,
    SlotMap,
    TableRows,
    multiplied_input,
)
from distsage.kernels import level
from distsage.limits import usable_cores
from distsage.model.backend import by_kernels, set_threads
from distsage.model.inference import exchanged_rows, layer_rows
from distsage.partitioning.host_parts import HostParts
from distsage.plan.replay import Replay
from distsage.sampling.batch import MiniBatch
from distsage.sampling.sampler import Sampler
from distsage.sampling.seeds import Step
from distsage.train.allocator import keep_freed_memory
from distsage.train.loop import new_model
from distsage.train.records import Run

_TABLE_BYTES = 256 << 20
"""Rows that stand for a host's, at most; far more than the processor's caches hold."""
_TRANSFER_BYTES = 64 << 20
_MOST_SECONDS = 8.0
"""CPU-seconds that steps are measured for, at most; at least two rounds."""
_EMPTY_STEPS = 20
_CACHES_BYTES = 128 << 20
_EVALUATED_NODES = 20_000
_CHUNK = 1 << 20
_CPU = torch.device("cpu")
_THREADS = "OMP_NUM_THREADS"  # what `distsage.kernels.threads` asks


@dataclass(frozen=True)
class Machine:
    """What a unit of work takes.

    Attributes:
        source: where the figures are from, for people.
        sample_edge, find_edge: CPU-seconds per sampled edge: to sample it; to find its row.
        step_edge: seconds by the clock, per sampled edge, of forward, backward and optimiser with
            nothing beside them.
        threads: that did such a step. Of others it is supposed that they share it as well.
        empty_step: CPU-seconds of a step whose batch has one seed node: what interpreter and
            libraries take before there is any work.
        evaluate_edge: CPU-seconds per edge, of all layers.
        serve_byte, receive_byte: CPU-seconds per byte: gathering, hashing and sending it; receiving
            and hashing it.
        spread: of step_edge between batches, as a fraction.
    """

    source: str
    sample_edge: float
    find_edge: float
    step_edge: float
    threads: int
    empty_step: float
    evaluate_edge: float
    serve_byte: float
    receive_byte: float
    spread: float


def measure(parts: HostParts, config: TrainConfig, replayed: Replay, num_threads: int) -> Machine:
    """Measure this machine with batches of the job and the model's own code; some 20 s.

    Rows are stand-ins of their width and type, as many as 256 MiB hold.

    Args:
        parts: dealt out to the hosts.
        config: of the run.
        replayed: batches of the job.
        num_threads: that a trainer of the job computes with. Two that share a core's units, or its
            caches, take more CPU-seconds for the same work than one.

    Raises:
        UserError: a file of the parts cannot be read.
    """
    num_threads = min(num_threads, usable_cores())
    with _computing_with(num_threads):
        return _measure(parts, config, replayed, num_threads)


@contextmanager
def _computing_with(num_threads: int) -> Iterator[None]:
    """Inside, this process computes as a trainer of so many threads."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = str(num_threads)
    try:
        set_threads(_CPU)
        yield
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before


def _measure(parts: HostParts, config: TrainConfig, replayed: Replay, num_threads: int) -> Machine:
    keep_freed_memory()
    batches = [batch for batch in replayed.batches if batch.num_edges]
    rows = _stand_in(parts, config)
    way = choose_way(parts, config, replayed)
    step, empty, spread = _steps(parts, config, replayed, batches, rows, way)
    gather, tag, send, receive = _transfer(rows)
    return Machine(
        f"measured here ({level.processor_name()}, kernels {level.chosen()})",
        sample_edge=sampling(parts, config, replayed),
        find_edge=_find_edge(parts, batches, way),
        step_edge=step,
        threads=num_threads,
        empty_step=empty,
        evaluate_edge=_evaluate_edge(parts, config, rows),
        serve_byte=gather + tag + send,
        receive_byte=tag + receive,
        spread=spread,
    )


def calibrated(here: Machine, run: Run, config: TrainConfig) -> Machine:
    """The figures of an earlier run's records, and those measured here that it has not.

    Raises:
        UserError: the run tells nothing about this model, or has no records.
    """
    for name in ("fan_out", "num_hidden", "precision", "sampler", "input_layer"):
        if str(run.config.get(name)) != str(getattr(config, name)):
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"--calibrate {run.path} trained with {option} {run.config.get(name)}, the plan is "
                f"for {getattr(config, name)}; name a run of the same model, or leave it out"
            )
    epochs = run.epochs[1:] or run.epochs
    if not epochs or any("sample_seconds" not in epoch for epoch in epochs):
        raise UserError(
            f"--calibrate {run.path} has no records of `distsage train` to take figures from; name "
            "another run, or leave it out"
        )

    def total(name: str) -> float:
        return sum(float(epoch.get(name, {"total": 0.0})["total"]) for epoch in epochs)

    edges = max(total("edges"), 1.0)
    environment = run.about.get("environment", {})
    threads = int(environment.get("threads") or environment.get("cores", 1))
    phases = ("forward_seconds", "backward_seconds", "optimizer_seconds")
    per_epoch = [
        sum(epoch[name]["total"] for name in phases) / max(epoch["edges"]["total"], 1)
        for epoch in epochs
    ]
    steps = float(np.mean(per_epoch))
    evaluated = [epoch for epoch in epochs if "eval_seconds" in epoch]
    all_edges = run.about.get("graph", {}).get("edges", 0)
    evaluate = here.evaluate_edge
    if evaluated and all_edges:
        seconds = float(np.mean([epoch["eval_seconds"] for epoch in evaluated]))
        evaluate = seconds * threads * run.about["trainers"] / all_edges
    return replace(
        here,
        source=f"from the records of {run.path}",
        sample_edge=total("sample_seconds") / edges,
        step_edge=steps,
        threads=threads,
        evaluate_edge=evaluate,
        spread=float(np.std(per_epoch) / steps) if steps else 0.0,
    )


def choose_way(parts: HostParts, config: TrainConfig, replayed: Replay) -> Way:
    """How layer 1 computes, as the job would choose."""
    manifest = parts.manifest
    numbers = sum(part.feature_numbers for part in manifest.parts)
    return choose_input_layer(
        config.input_layer,
        manifest.num_features,
        numbers / manifest.num_nodes if manifest.features.is_sparse else None,
        config.num_hidden if len(config.fan_outs) > 1 else manifest.num_classes,
        replayed.mean_counts,
    ).way


def _stand_in(parts: HostParts, config: TrainConfig) -> Features:
    """Rows of the width and type that the job's have; sparse ones are a part's own."""
    manifest = parts.manifest
    if not manifest.features.is_sparse:
        width = manifest.num_features
        count = max(1, min(manifest.num_nodes, _TABLE_BYTES // (4 * width)))
        generator = torch.Generator().manual_seed(0)
        return cast_features(torch.rand(count, width, generator=generator), config.feat_dtype)
    found = parts.parts.sparse_features(0)
    values = None if found.values is None else torch.from_numpy(np.array(found.values))
    if values is not None:
        values = cast_features(values, config.feat_dtype)
    return SparseRows(
        torch.from_numpy(found.indptr),
        torch.from_numpy(np.array(found.columns)),
        values,
        manifest.num_features,
    )


def _inputs(batch: MiniBatch, rows: Features, way: Way) -> InputLayer | MultipliedInput:
    """Layer 1 of a batch on stand-ins."""
    assert batch.input_gid is not None
    slots = batch.input_gid % len(rows)
    if isinstance(rows, SparseRows):
        taken = rows.take(slots)
        if way != "gather":
            return multiplied_input(batch, taken)
        dense = taken.filled_in()
        inner = np.arange(len(batch.dst_gid), dtype=np.int32)
        return InputLayer((dense,), batch.input_edges.indptr, batch.input_edges.indices, inner)
    if way == "gather":
        edges = slots[batch.input_edges.indices]
        return InputLayer((rows,), batch.input_edges.indptr, edges, batch.dst_gid % len(rows))
    if by_kernels(_CPU):
        return multiplied_input(batch, TableRows((rows,), slots))
    return multiplied_input(batch, rows[torch.from_numpy(slots.astype(np.int64))])


def _steps(
    parts: HostParts,
    config: TrainConfig,
    replayed: Replay,
    batches: Sequence[MiniBatch],
    rows: Features,
    way: Way,
) -> tuple[float, float, float]:
    """Forward, backward and optimiser: seconds per edge by the clock, CPU-seconds of an empty step,
    and the spread between batches."""
    manifest = parts.manifest
    if not batches:
        return 0.0, 0.0, 0.0
    model = new_model(config, manifest.num_features, manifest.num_classes)
    if way == "sparse":
        model.lay_out_for_sparse_rows()
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)

    def step(batch: MiniBatch) -> tuple[float, float]:
        inputs = _inputs(batch, rows, way)
        began = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=False)
        logits = model(inputs, batch.blocks, batch.key)
        target = torch.zeros(len(logits), dtype=torch.int64)
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()
        return time.perf_counter() - began[0], time.process_time() - began[1]

    step(batches[0])  # compiles
    begun = time.process_time()
    per_edge = []
    for round_ in range(4):
        if round_ >= 2 and time.process_time() - begun > _MOST_SECONDS:
            break
        per_edge += [step(batch)[0] / batch.num_edges for batch in batches]
    median = float(np.median(per_edge))
    spread = float(np.subtract(*np.percentile(per_edge, [75, 25])) / median)
    first = replayed.steps[0]
    tiny = _sampler(parts, config, number_inputs=True).sample(
        first.seed_gid[:1], first.sample_key, first.dropout_key
    )
    empty = float(np.median([step(tiny)[1] for _ in range(_EMPTY_STEPS)]))
    return median, empty, spread


def sampling(parts: HostParts, config: TrainConfig, replayed: Replay) -> float:
    """CPU-seconds per edge of sampling, as the job's workers do it.

    Raises:
        UserError: a file of the parts cannot be read.
    """
    way = choose_way(parts, config, replayed)
    sampler = _sampler(parts, config, number_inputs=_numbers_inputs(parts, way))

    def sample(step: Step) -> None:
        sampler.sample(step.seed_gid, step.sample_key, step.dropout_key)

    for step in replayed.steps:  # compiles, and reads the topology
        sample(step)
    seconds = _cold(partial(sample, step) for step in replayed.steps)
    return seconds / max(sum(batch.num_edges for batch in replayed.batches), 1)


def _sampler(parts: HostParts, config: TrainConfig, *, number_inputs: bool) -> Sampler:
    """As the job's workers have it, where the topology is on every host."""
    return Sampler(
        parts.parts.topology(),
        config.fan_outs,
        method=config.sampling_method,
        number_inputs=number_inputs,
    )


def _numbers_inputs(parts: HostParts, way: Way) -> bool:
    """Whether the job's samplers number the inputs of batches, as `PartRows` has it."""
    return way != "gather" or not by_kernels(_CPU) or parts.manifest.features.is_sparse


def _find_edge(parts: HostParts, batches: Sequence[MiniBatch], way: Way) -> float:
    """Finding where the rows of layer 1 are."""
    if not batches:
        return 0.0
    no_cache = np.empty(0, np.int64)
    slots = SlotMap(parts.offsets, 0, no_cache)
    wanted = []
    for batch in batches:
        assert batch.input_gid is not None
        if _numbers_inputs(parts, way):
            wanted.append((batch.input_gid, batch.input_gid[:0]))
        else:
            wanted.append((batch.input_gid[batch.input_edges.indices], batch.dst_gid))
    slots.find(*wanted[0])  # compiles
    seconds = _cold(partial(slots.find, *each) for each in wanted)
    return seconds / sum(batch.num_edges for batch in batches)


def _evaluate_edge(parts: HostParts, config: TrainConfig, rows: Features) -> float:
    """All layers of an evaluation, on the edges of the first nodes."""
    manifest, topology = parts.manifest, parts.parts.topology()
    count = min(len(rows), _EVALUATED_NODES, manifest.num_nodes)
    indptr = np.asarray(topology.indptr[: count + 1])
    if indptr[-1] == 0:
        return 0.0
    model = new_model(config, manifest.num_features, manifest.num_classes).eval()

    def evaluate() -> None:
        h: Features = rows
        for layer in range(len(model.layers)):
            table = exchanged_rows(model, layer, h)
            slots = np.asarray(topology.indices[: indptr[-1]]) % len(table)
            own = h.between(0, count) if isinstance(h, SparseRows) else h[:count]
            h = layer_rows(model, layer, own, (table,), indptr, slots)

    with torch.no_grad():
        evaluate()  # compiles
        return _cpu(evaluate) / int(indptr[-1])


def _transfer(rows: Features) -> tuple[float, float, float, float]:
    """CPU-seconds per byte: gathering rows, hashing, sending and receiving by TCP."""
    table: Tensor = rows.columns[:, None] if isinstance(rows, SparseRows) else rows
    row_bytes = table.shape[1] * table.element_size()
    chosen = torch.randint(len(table), (max(1, _TRANSFER_BYTES // 4 // row_bytes),))
    gathered = len(chosen) * row_bytes
    gather = _cpu(lambda: table.index_select(0, chosen)) / gathered
    data = os.urandom(_CHUNK)
    cipher, times = AESGCM(bytes(32)), _TRANSFER_BYTES // _CHUNK
    tag = _cpu(lambda: [cipher.encrypt(bytes(12), b"", data) for _ in range(times)])
    # One end sends, then the other reads what has come: both by this thread, each timed alone.
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    sending = receiving = 0.0
    # What comes goes to memory that nothing was in, and is then put together.
    piece, into = memoryview(data)[: 1 << 16], memoryview(bytearray(_TRANSFER_BYTES))
    near.settimeout(10.0)
    far.settimeout(10.0)
    with near, far:
        for begin in range(0, _TRANSFER_BYTES, len(piece)):
            started = time.thread_time()
            near.sendall(piece)
            sent = time.thread_time()
            at, end = begin, begin + len(piece)
            while at < end:
                at += far.recv_into(into[at:end])
            sending += sent - started
            receiving += time.thread_time() - sent
    receiving += _cpu(torch.frombuffer(into, dtype=torch.uint8).clone)
    return gather, tag / _TRANSFER_BYTES, sending / _TRANSFER_BYTES, receiving / _TRANSFER_BYTES


def _cold(pieces: Iterable[Callable[[], Any]]) -> float:
    """CPU-seconds of pieces of work, each when other data has been through the caches.

    In a job a step of the model is between two batches of a worker.
    """
    other, seconds = np.ones(_CACHES_BYTES // 8), 0.0
    for piece in pieces:
        other.sum()
        seconds += _cpu(piece)
    return seconds


def _cpu(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
