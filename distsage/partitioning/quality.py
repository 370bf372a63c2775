"""How good a partition is: sizes, edge cut, balance. Runs on the login host and in reports."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from distsage.limits import human_bytes
from distsage.partitioning.attempts import Attempt
from distsage.partitioning.manifest import Manifest, Part
from distsage.partitioning.ranking import mean_remote_rows


@dataclass(frozen=True)
class QualityReport:
    """Sizes per part and what they come to.

    Attributes:
        graph_name: whose parts they are.
        parts: one entry per part.
        edge_cut: directed edges whose ends lie in different parts.
        edge_cut_percent: the same, of all edges; 0 for a graph without edges.
        halo_nodes: over all parts: rows of other hosts that full-neighbour inference reads.
        balance: largest part / mean part, of nodes, edges and train nodes; 1 is even.
        remote_rows: of other parts that a mini-batch is expected to need, without a cache.
        method: who assigned the nodes to the parts, and why.
        attempts: all that were made, where there were several.
    """

    graph_name: str
    parts: tuple[Part, ...]
    edge_cut: int
    edge_cut_percent: float
    halo_nodes: int
    balance: dict[str, float]
    remote_rows: float
    method: str
    attempts: tuple[Attempt, ...]

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        remote_rows: Sequence[float],
        method: str,
        attempts: Sequence[Attempt] = (),
    ) -> "QualityReport":
        """The report on the parts that a manifest describes; `remote_rows` are those of each."""
        parts = manifest.parts
        return cls(
            graph_name=manifest.graph_name,
            parts=parts,
            edge_cut=manifest.edge_cut,
            edge_cut_percent=100 * manifest.edge_cut / max(manifest.num_edges, 1),
            halo_nodes=sum(part.halo_nodes for part in parts),
            balance={
                "nodes": _max_over_mean([part.num_nodes for part in parts]),
                "edges": _max_over_mean([part.num_edges for part in parts]),
                "train_nodes": _max_over_mean([part.train_nodes for part in parts]),
            },
            remote_rows=mean_remote_rows(remote_rows, [part.train_nodes for part in parts]),
            method=method,
            attempts=tuple(attempts),
        )

    def to_json(self) -> dict[str, Any]:
        """As `quality.json` has it."""
        return asdict(self)

    def __str__(self) -> str:
        """A table for the terminal."""
        header = ["part", "nodes", "halo", "edges", "cut", "train", "val", "test", "size"]
        rows = [
            [
                str(index),
                *(
                    f"{count:,}"
                    for count in (
                        part.num_nodes,
                        part.halo_nodes,
                        part.num_edges,
                        part.cut_edges,
                        part.train_nodes,
                        part.val_nodes,
                        part.test_nodes,
                    )
                ),
                human_bytes(part.bytes),
            ]
            for index, part in enumerate(self.parts)
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        table = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in (header, *rows)
        ]
        balance = ", ".join(f"{name.replace('_', ' ')} {x:.3f}" for name, x in self.balance.items())
        return "\n".join(
            [
                *table,
                f"edge cut: {self.edge_cut:,} directed edges ({self.edge_cut_percent:.2f} %)",
                f"largest part / mean part: {balance}",
                f"remote rows expected in a batch: {self.remote_rows:,.0f}",
                f"assignment: {self.method}",
                *(f"seed {attempt.seed}: {attempt}" for attempt in self.attempts),
            ]
        )


def _max_over_mean(counts: Sequence[int]) -> float:
    total = sum(counts)
    return max(counts) * len(counts) / total if total else 1.0
