"""What happens to a run, line by line in events.jsonl.

Written by trainer 0, the local run and watchers.

An event is a JSON object: `time` (seconds since 1970), `event` (what happened) and facts about it.
"""

import json
import time
from pathlib import Path
from typing import Any

from distsage.files import append_line

EVENTS = "events.jsonl"


def append_event(run_dir: Path, event: str, **facts: Any) -> None:
    """Append an event and sync it.

    Args:
        run_dir: of the run.
        event: began, resumed, checkpoint, rolled back, stopped, failed or finished.
        facts: that JSON knows.

    Raises:
        OSError: it cannot be written.
    """
    line = {"time": round(time.time(), 3), "event": event, **facts}
    append_line(run_dir / EVENTS, json.dumps(line))
