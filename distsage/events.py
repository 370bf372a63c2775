"""What happens to a run, line by line in events.jsonl.

Written by trainer 0, the local run and watchers.

An event is a JSON object: `time` (seconds since 1970), `event` (what happened) and facts about it.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from distsage.files import append_line

EVENTS = "events.jsonl"


def append_event(run_dir: Path, event: str, **facts: Any) -> None:
    """Append an event and sync it. Raises OSError if it cannot be written.

    Args:
        run_dir: of the run.
        event: began, resumed, checkpoint, rolled back, stopped, failed or finished.
        facts: that JSON knows.
    """
    append_line(run_dir / EVENTS, _line(event, facts))


def append_last_event(run_dir: Path, event: str, **facts: Any) -> None:
    """As `append_event`, for a process that is about to end and that others wait for.

    Nothing is synced: the kernel writes it, unless the host is lost first. No error is raised.
    """
    with contextlib.suppress(OSError), open(run_dir / EVENTS, "ab", buffering=0) as stream:
        stream.write(_line(event, facts).encode() + b"\n")


def _line(event: str, facts: dict[str, Any]) -> str:
    return json.dumps({"time": round(time.time(), 3), "event": event, **facts})
