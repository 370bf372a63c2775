"""Tables about runs for the terminal. Runs on the login host."""

from collections.abc import Sequence

from distsage.limits import human_bytes
from distsage.report.figures import differing_options, host_names, moment, seconds
from distsage.train.records import Run


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def list_runs(runs: Sequence[Run]) -> str:
    """A line per run, then the options in which the runs differ."""
    if not runs:
        return "no runs here"
    head = ["run", "state", "graph", "hosts", "epochs", "loss", "val", "test", "started"]
    lines = align([head, *(_line(run) for run in runs)])
    names = differing_options([run.config for run in runs])
    if not names:
        return lines
    options = [["differ in", *(name.replace("_", "-") for name in names)]]
    options += [[run.name, *(str(run.config.get(name, "")) for name in names)] for run in runs]
    return f"{lines}\n\n{align(options)}"


def _line(run: Run) -> list[str]:
    scores = [run.score(mask) for mask in ("val", "test")]
    return [
        run.name,
        run.state[0],
        str(run.about.get("graph", {}).get("name", "?")),
        str(len(run.hosts) or run.summary.get("hosts", "?")),
        f"{len(run.epochs)}/{run.config.get('num_epochs', '?')}",
        f"{run.epochs[-1]['loss']:.4f}" if run.epochs else "",
        *("" if score is None else f"{score:.4f}" for score in scores),
        moment(run.about["started"]) if "started" in run.about else "?",
    ]


def host_table(run: Run) -> str:
    """What each host took in the last epoch, and whom it waited for; empty without records."""
    if not run.epochs or not run.epochs[-1].get("hosts"):
        return ""
    hosts, names = run.epochs[-1]["hosts"], host_names(run)
    rows = [["host", "memory", "/dev/shm", "CPU", "received", "waited", "mostly for"]]
    for name, host in zip(names, hosts, strict=True):
        waits = [
            sum(pair)
            for pair in zip(
                host["step_wait_seconds_for"], host["fetch_wait_seconds_for"], strict=True
            )
        ]
        longest = max(range(len(waits)), key=lambda other: waits[other])
        rows.append(
            [
                name,
                human_bytes(host["trainer_bytes"] + host["server_bytes"]),
                human_bytes(host["shared_bytes"]),
                seconds(host["trainer_cpu_seconds"] + host["server_cpu_seconds"]),
                human_bytes(sum(host["received_bytes_from"])),
                seconds(sum(waits)),
                names[longest] if waits[longest] > 0 else "",
            ]
        )
    return align(rows)
