"""Compile every kernel for a processor that need not be this one, and list what its code calls.

    python -m tests.unit.programs.cross_compile PROCESSOR LEVEL

PROCESSOR is LLVM's name of one, or `level` for what LEVEL stands for. Nothing is run. Prints a line
`KERNEL SYMBOL` for every symbol that an object refers to and does not define.
"""

import importlib
import io
import sys
from collections.abc import Iterator

import numba
from elftools.elf.elffile import ELFFile
from numba.core.types import (
    Array,
    NamedTuple,
    NamedUniTuple,
    boolean,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint16,
    uint64,
)

from distsage.kernels import level

BFLOAT16, FLOAT16 = uint16, int16


def rows(kind):
    return Array(kind, 2, "C")


def numbers(kind):
    return Array(kind, 1, "C")


def kernels() -> dict[str, list[tuple]]:
    """The signatures that the package uses, by module and function; the level is chosen by then."""
    from distsage.kernels.gather import Edges, Tables
    from distsage.kernels.hidden_layer import BySource, Dropout
    from distsage.kernels.input_layer import ByColumn, Csr

    stored = (float32, BFLOAT16, FLOAT16, int8)
    tables = {kind: NamedUniTuple(rows(kind), 3, Tables) for kind in stored}
    edges = {
        kind: NamedTuple((numbers(int64), numbers(kind), numbers(kind)), Edges)
        for kind in (int32, int64)
    }
    by_source = NamedTuple((numbers(int64), numbers(int32), numbers(float32)), BySource)
    csr = {
        kind: NamedTuple((numbers(int64), numbers(int32), numbers(kind)), Csr) for kind in stored
    }
    by_column = NamedTuple((numbers(int64), numbers(int32), numbers(float32)), ByColumn)
    dropout = NamedTuple((int64, float64, uint64), Dropout)
    counter, bits, bias = numbers(int64), numbers(uint64), rows(float32)
    halves = (float32, BFLOAT16)
    return {
        "gather.gather_self_and_mean": [
            (rows(out), edges[slots], tables[kind], int64, int64)
            for out in halves
            for kind in tables
            for slots in (edges if kind == float32 else [int32])
        ],
        "gather.gather": [
            (rows(kind), numbers(slots), tables[kind])
            for kind in tables
            for slots in (edges if kind == float32 else [int32])
        ],
        "hidden_layer.relu_dropout": [
            (rows(kind), rows(uint64), bias, dropout, int64, int64) for kind in halves
        ],
        "hidden_layer.hidden_layer_forward": [
            (
                rows(kind),
                rows(uint64),
                rows(kind),
                edges[int32],
                tables[table],
                Array(float32, 3, "C"),
                bias,
                dropout,
                counter,
                int64,
            )
            for kind in halves
            for table in tables
        ],
        "hidden_layer.transpose": [(numbers(int64), numbers(int32), int64)],
        "hidden_layer.hidden_layer_backward": [
            (
                Array(float32, 3, "C"),
                rows(float32),
                rows(kind),
                rows(kind),
                rows(uint64),
                rows(kind),
                by_source,
                float64,
                int64,
                counter,
            )
            for kind in halves
        ],
        "input_layer.multiply_rows": [
            (rows(kind), csr[values], rows(kind), int64, int64) for kind in halves for values in csr
        ],
        "input_layer.add_means": [
            (rows(kind), numbers(int64), numbers(int32), rows(kind), int64, int64)
            for kind in halves
        ],
        "input_layer.spread_means": [
            (rows(float32), by_source, rows(kind), int64, int64) for kind in halves
        ],
        "input_layer.transpose_rows": [(csr[values], int64) for values in csr],
        "input_layer.weight_gradient": [
            (rows(float32), by_column, rows(kind), int64, int64) for kind in halves
        ],
        "picking.sample_independently": [
            (numbers(int64), numbers(kind), int64, numbers(kind), int64, uint64, boolean, bits)
            for kind in (int32, int64)
        ],
        "picking.sample_labor": [
            (
                numbers(int64),
                numbers(kind),
                int64,
                numbers(kind),
                int64,
                uint64,
                numbers(int32),
            )
            for kind in (int32, int64)
        ],
        "picking.number_nodes": [
            (numbers(kind), numbers(kind), numbers(int32), numbers(kind), numbers(int32))
            for kind in (int32, int64)
        ],
        "picking.place_picks": [
            (numbers(int64), numbers(int64), numbers(kind), numbers(kind))
            for kind in (int32, int64)
        ],
        "slots.copy_rows": [
            (
                numbers(int64),
                numbers(int32),
                numbers(values),
                numbers(int64),
                numbers(int64),
                numbers(int32),
                numbers(values),
                numbers(kind),
            )
            for kind in (int32, int64)
            for values in (int8, int16, int32)
        ],
        "slots.split_slots": [
            (
                numbers(kind),
                numbers(kind),
                int64,
                int64,
                int64,
                numbers(int32),
                bits,
                numbers(int32),
                numbers(int32),
                numbers(int64),
            )
            for kind in (int32, int64)
        ],
    }


def undefined_symbols(dispatcher, signature) -> Iterator[str]:
    """What the code of one signature refers to and does not define."""
    dispatcher.compile(signature)
    library = dispatcher.overloads[signature].library
    code = library.codegen._tm.emit_object(library._final_module)
    for symbol in ELFFile(io.BytesIO(code)).get_section_by_name(".symtab").iter_symbols():
        if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name:
            yield symbol.name


def main(processor: str, wanted: str) -> None:
    """Print the symbols of all kernels."""
    chosen = level.Level[wanted.upper().replace("-", "_")]
    level.chosen = lambda: chosen  # whatever this machine can run
    if processor != "level":
        level.TARGETS[chosen] = processor, level.TARGETS[chosen][1]

    for name, signatures in kernels().items():
        module, function = name.split(".")
        if chosen == level.Level.TORCH and module in ("gather", "hidden_layer", "input_layer"):
            continue  # what these do is done by torch
        dispatcher = getattr(importlib.import_module(f"distsage.kernels.{module}"), function)
        dispatcher._cache = numba.core.caching.NullCache()
        for signature in signatures:
            for symbol in sorted(set(undefined_symbols(dispatcher, signature))):
                print(name, symbol)


if __name__ == "__main__":
    main(*sys.argv[1:])
