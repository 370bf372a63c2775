"""What a run leaves behind. Written by trainer 0 and by the local run.

config.yaml         every option, as resolved; `--config` reads it
epochs.jsonl        one JSON record per epoch
model.safetensors   weights of the best validation epoch
model.json          what is needed to rebuild the model and find its graph
summary.json        the result; there when the run is finished
ip_config.txt       addresses and ports of the servers (MPI jobs), for people
owner.txt           the job that the directory belongs to, or belonged to last
earlier-N/          the same files of earlier runs in this directory
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml

from distsage.errors import UserError
from distsage.files import append_line, atomic_file, explain_write_errors, write_json

_FILES = ("config.yaml", "epochs.jsonl", "model.safetensors", "model.json", "summary.json")


class RunDirectory:
    """The directory of one run. No file in it is ever half-written.

    Raises:
        UserError: a file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def begin(cls, path: Path, config: Any) -> "RunDirectory":
        """Prepare the directory for a new run and write the configuration, a dataclass.

        Files of an earlier run move to `earlier-N`, so that no checkpoint is ever overwritten by
        another run's.
        """
        with explain_write_errors(path, "--run-dir"):
            path.mkdir(parents=True, exist_ok=True)
            old = [name for name in _FILES if (path / name).exists()]
            if old:
                number = 1
                while (path / f"earlier-{number}").exists():
                    number += 1
                (path / f"earlier-{number}").mkdir()
                for name in old:
                    os.rename(path / name, path / f"earlier-{number}" / name)
            with atomic_file(path / "config.yaml", "w") as stream:
                yaml.safe_dump(_plain(dataclasses.asdict(config)), stream, sort_keys=False)
        return cls(path)

    def record(self, epoch: dict[str, Any]) -> None:
        """Append one epoch's record and sync it."""
        path = self.path / "epochs.jsonl"
        with explain_write_errors(path, "--run-dir"):
            append_line(path, json.dumps(epoch))

    def save_model(self, model: torch.nn.Module, description: dict[str, Any]) -> None:
        """Write the weights and how to rebuild the model; the two files appear together."""
        weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
        path = self.path / "model.safetensors"
        with explain_write_errors(path, "--run-dir"), atomic_file(path) as stream:
            stream.write(safetensors.torch.save(weights))
            stream.flush()
            os.fsync(stream.fileno())  # only the renaming is left when the description is there
            description_path = self.path / "model.json"
            with explain_write_errors(description_path, "--run-dir"):
                write_json(description_path, _plain(description))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the result."""
        path = self.path / "summary.json"
        with explain_write_errors(path, "--run-dir"):
            write_json(path, summary)

    def load_model(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Read back what `save_model` wrote: the description and the weights.

        Raises:
            UserError: there is no model, or its files are damaged.
        """
        try:
            description = json.loads((self.path / "model.json").read_bytes())
            weights = safetensors.torch.load((self.path / "model.safetensors").read_bytes())
        except OSError as error:
            raise UserError(
                f"{self.path} holds no trained model (cannot read {Path(error.filename).name}: "
                f"{error.strerror}); name the --run-dir of a run"
            ) from error
        except (ValueError, safetensors.SafetensorError) as error:
            raise UserError(f"the model in {self.path} is damaged: {error}") from error
        return description, weights


def _plain(value: Any) -> Any:
    """The same value in terms that YAML and JSON know."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
