"""Options that several programs of the benchmarks have."""

import argparse


def numbers(text: str) -> list[int]:
    """Read `"10,25"` as [10, 25]; a type for `add_argument`."""
    return [int(number) for number in text.split(",")]


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of both baselines."""
    parser.add_argument("--records", required=True, help="file to append a record per epoch to")
    parser.add_argument("--fan-out", type=numbers, required=True, help="input layer first")
    parser.add_argument("--num-epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--num-hidden", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
