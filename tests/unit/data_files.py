"""A small graph as arrays and as tables in files, for the tests of data."""

from pathlib import Path

import numpy as np
import pandas as pd

# A directed path 0 -> 1 -> ... -> 9 with a duplicate, a self-loop and the isolated node 10.
SRC = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 4])
DST = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 4])
NUM_NODES = 11


def small_arrays() -> dict[str, np.ndarray]:
    """Feature row v is (v, 2v), its label v mod 3; train 0-3, val 4-6, test 7-9."""
    node = np.arange(NUM_NODES)
    return {
        "num_nodes": np.array(NUM_NODES),
        "edge_src": SRC,
        "edge_dst": DST,
        "labels": node % 3,
        "features": np.stack([node, 2 * node], axis=1).astype(np.float32),
        "train_mask": node < 4,
        "val_mask": (node >= 4) & (node < 7),
        "test_mask": (node >= 7) & (node < 10),
    }


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    arrays = small_arrays()
    split = np.select([arrays["train_mask"], arrays["val_mask"], arrays["test_mask"]], range(1, 4))
    nodes = pd.DataFrame(
        {
            "id": np.arange(NUM_NODES),
            "f0": arrays["features"][:, 0],
            "label": arrays["labels"],
            "f1": arrays["features"][:, 1],
            "split": np.array(["", "train", "val", "test"], object)[split],
        }
    )
    return pd.DataFrame({"src": SRC, "dst": DST}), nodes


def write(directory: Path, edges: pd.DataFrame, nodes: pd.DataFrame, suffix: str = ".csv") -> str:
    directory.mkdir(exist_ok=True)
    for stem, table in (("edges", edges), ("nodes", nodes)):
        path = directory / f"{stem}{suffix}"
        if suffix == ".parquet":
            table.to_parquet(path, index=False)
        else:
            table.to_csv(path, index=False)
    return str(directory)
