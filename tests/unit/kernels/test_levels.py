"""The level of kernels: which one a processor has, and code that runs on every such processor."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from distsage.errors import UserError
from distsage.kernels import level
from distsage.kernels.level import Level
from tests.unit.programs import cross_compile

ROOT = Path(__file__).parents[3]
V2 = {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"}
HASWELL = V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
SKYLAKE_512 = HASWELL | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
ICELAKE = SKYLAKE_512 | {"avx512vbmi", "avx512_vbmi2", "avx512_vnni", "avx512ifma", "gfni", "vaes"}
PROCESSORS = {
    "nehalem": (V2, Level.TORCH),
    "haswell": (HASWELL, Level.AVX2),
    "znver2": (HASWELL | {"clwb", "wbnoinvd"}, Level.AVX2),
    "znver3": (HASWELL | {"vaes", "vpclmulqdq", "pku"}, Level.AVX2),
    "skylake-avx512": (SKYLAKE_512, Level.AVX512),
    "icelake-server": (ICELAKE, Level.AVX512),
    "znver4": (ICELAKE | {"avx512_bf16"}, Level.AVX512_BF16),
    "sapphirerapids": (ICELAKE | {"avx512_bf16", "amx_bf16", "avx512_fp16"}, Level.AVX512_BF16),
}
"""Flags of processors, as Linux names them (those that count), and the level they have."""


def allowed(symbol: str) -> bool:
    """What machine code may call, because every process that runs it has it.

    - `Py...`: CPython's interface; the wrapper of a kernel reads its arguments with it.
    - `NRT_...`, `numba_...`: numba's runtime and helpers, which it registers when it is imported.
    - `memcpy`, `memset`: the C library's; LLVM makes them of loops.
    """
    return symbol.startswith(("Py", "_Py", "NRT_", "numba_")) or symbol in ("memcpy", "memset")


@pytest.mark.parametrize("processor", PROCESSORS)
def test_level_of_a_processor(processor):
    flags, expected = PROCESSORS[processor]
    assert level.from_flags(flags) == expected


def test_a_flag_that_is_missing_lowers_the_level():
    """As where a hypervisor hides some: all that a level's code may use has to be there."""
    for missing in ("fma", "f16c", "bmi2", "abm", "movbe"):
        assert level.from_flags(PROCESSORS["znver4"][0] - {missing}) == Level.TORCH
    assert level.from_flags(PROCESSORS["znver4"][0] - {"avx512vl"}) == Level.AVX2


def cross_compiled(processor: str) -> subprocess.CompletedProcess[str]:
    """Every kernel in every type, compiled for a processor in a process of its own."""
    name, _, stated = processor.partition(" ")
    return subprocess.run(
        [
            *(sys.executable, "-m", "tests.unit.programs.cross_compile"),
            *(name, stated or str(PROCESSORS[name][1])),
        ],
        cwd=ROOT,
        env={**os.environ, "DISTSAGE_KERNELS": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def compilations(
    request: pytest.FixtureRequest,
) -> Iterator[Mapping[str, Future[subprocess.CompletedProcess[str]]]]:
    """Those that the tests ask for, two at a time: when they run, most other tests are over."""
    test = test_code_for_any_processor_calls_nothing_that_a_process_lacks
    asked = [
        item.callspec.params["processor"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test
    ]
    with ThreadPoolExecutor(2) as pool:
        yield {processor: pool.submit(cross_compiled, processor) for processor in asked}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("processor", ["level torch", *PROCESSORS])
def test_code_for_any_processor_calls_nothing_that_a_process_lacks(processor, compilations):
    """LLVM turns what a processor lacks into calls of functions, which no process may have.

    Every kernel in every type is compiled for the processor, whatever this machine's is; as the
    processor's model, so that nothing rests on the choice of the level's target.
    """
    run = compilations[processor].result()
    assert run.returncode == 0, run.stderr
    found = [line.split() for line in run.stdout.splitlines()]
    assert len({kernel for kernel, _ in found}) >= 5
    assert [line for line in found if not allowed(line[1])] == []


def test_every_kernel_is_cross_compiled():
    """A kernel that Python calls stands in the list of signatures; others are part of those."""
    listed = set(cross_compile.kernels())
    for file in (ROOT / "distsage/kernels").glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            is_kernel = isinstance(node, ast.FunctionDef) and any(
                isinstance(d, ast.Name) and d.id == "compiled" for d in node.decorator_list
            )
            if is_kernel and not node.name.startswith("_") and file.stem != "rng":
                called = f"{file.stem}.{node.name}"
                assert called in listed or node.name in ("column_sums",), called


def test_a_level_is_forced_downwards_only(monkeypatch):
    for own in Level:
        monkeypatch.setattr(level, "of_processor", lambda own=own: own)
        for forced in Level:
            monkeypatch.setenv(level.VARIABLE, str(forced))
            level.chosen.cache_clear()
            if forced <= own:
                assert level.chosen() == forced
            else:
                with pytest.raises(UserError, match="can be forced downwards only"):
                    level.chosen()
    monkeypatch.setenv(level.VARIABLE, "avx3")
    level.chosen.cache_clear()
    with pytest.raises(UserError, match="'avx3'; give one of torch, avx2, avx512, avx512-bf16"):
        level.chosen()
    monkeypatch.undo()
    level.chosen.cache_clear()


def test_pytorch_is_held_to_a_forced_level():
    """The optimiser's arithmetic, too, is that of the lowest host."""
    if level.of_processor() == Level.TORCH:
        pytest.skip("this processor has one level only")
    program = (
        "from distsage.kernels import level\n"
        "level.hold_to(level.Level.TORCH)\n"
        "import torch\n"
        "print(torch.backends.cpu.get_cpu_capability())\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "DEFAULT", run.stderr
