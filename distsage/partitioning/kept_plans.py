"""What jobs on these parts are expected to take, kept beside the parts. Login host and trainer 0.

`distsage plan` keeps a file for each number of hosts; a job that starts takes the one that is of
its kind into its own records (`distsage.train.about`), so that its report can say how far off it
was. docs/run-directory.md explains every field.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from distsage.config import TrainConfig
from distsage.errors import UserError
from distsage.files import read_json, write_json
from distsage.partitioning.parts import Parts

PLANS = "plans"
"""The folder in a parts directory."""

# Options of training that change neither what a batch needs nor how long it takes: another seed
# draws other batches of the same kind.
_INDIFFERENT = frozenset(
    (
        *("parts", "conf_file", "ip_config", "interface", "emulated_hosts", "startup_timeout"),
        *("stage", "stall_timeout", "run_dir", "resume", "checkpoint_minutes", "tensorboard"),
        *("num_epochs", "eval_every", "lr", "weight_decay", "on_nan", "seed"),
    )
)


@dataclass(frozen=True)
class Expectation:
    """What a job is expected to take. What nobody could tell is None.

    Attributes:
        by: who says so, for people.
        memory_bytes: of each host at its peak, without pages of files.
        epoch_seconds: of an epoch's steps, as are the ends of the band.
        epoch_seconds_low, epoch_seconds_high: the band.
        eval_seconds: of an evaluation.
        edges, missed_rows: of an epoch, all trainers together.
    """

    by: str
    memory_bytes: list[int]
    epoch_seconds: float | None = None
    epoch_seconds_low: float | None = None
    epoch_seconds_high: float | None = None
    eval_seconds: float | None = None
    edges: float | None = None
    missed_rows: float | None = None

    @classmethod
    def from_json(cls, value: Any) -> "Expectation":
        """Read back what `asdict` gave.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(value, dict) or set(value) != {field.name for field in fields(cls)}:
            raise ValueError("other fields")
        by, memory, *numbers = (value[field.name] for field in fields(cls))
        if not isinstance(by, str) or not isinstance(memory, list):
            raise ValueError("other types")
        if any(type(each) not in (int, float) for each in (*memory, *numbers) if each is not None):
            raise ValueError("no numbers")
        if not memory or None in memory:
            raise ValueError("no memory")
        return cls(**value)


def decides(option: str) -> bool:
    """Whether an option of training changes what an epoch takes."""
    return option not in _INDIFFERENT


def keep(
    parts: Parts,
    config: TrainConfig,
    pairs_per_host: int,
    by_hosts: Mapping[int, Expectation],
) -> str:
    """Keep what jobs are expected to take, by their numbers of hosts.

    An earlier plan of the same jobs is replaced.

    Returns:
        A sentence for people: where, or why not.
    """
    folder = parts.path / PLANS
    try:
        folder.mkdir(exist_ok=True)
        for num_hosts, expected in by_hosts.items():
            name = _name(parts, config, num_hosts, pairs_per_host)
            write_json(folder / name, asdict(expected))
    except OSError as error:
        return (
            f"not kept beside the parts, for {folder} cannot be written ({error.strerror}): put a "
            "plan.json (--json) into a run's directory, and its report will compare"
        )
    return f"kept in {folder}: the report of a run of this kind on these parts will compare"


def find(
    parts: Parts, config: TrainConfig, num_hosts: int, pairs_per_host: int
) -> Expectation | None:
    """What a job is expected to take by the last plan of its kind; None if there is none.

    Raises:
        UserError: there is one, but it cannot be read.
    """
    path = parts.path / PLANS / _name(parts, config, num_hosts, pairs_per_host)
    if not os.path.exists(path):
        return None
    try:
        expected = Expectation.from_json(read_json(path))
    except ValueError as error:
        raise UserError(f"{path} is no plan as this distsage keeps them ({error})") from error
    if len(expected.memory_bytes) != num_hosts:
        raise UserError(f"{path} is no plan for {num_hosts} hosts")
    return expected


def _name(parts: Parts, config: TrainConfig, num_hosts: int, pairs_per_host: int) -> str:
    """Of the file for jobs of one kind on these parts."""
    given = {
        field.name: getattr(config, field.name)
        for field in fields(TrainConfig)
        if decides(field.name)
    }
    kind = {"parts": parts.manifest.checksum, "pairs": pairs_per_host, "options": given}
    digest = hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()
    return f"{num_hosts}-hosts-{digest[:16]}.json"
