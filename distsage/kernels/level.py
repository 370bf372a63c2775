"""The level of instructions that kernels are compiled for, chosen once per process.

Runs on every rank, in the local run and in prediction; imports nothing heavy, so that the ranks of
a job can agree on a level before anybody imports numba or torch.

Kernels are compiled for a level, not for the processor at hand: two processors of one level run the
same machine code. A job whose hosts differ takes the lowest of their levels
(`distsage.launch.agreement`).
"""

import enum
import os
import platform
from functools import cache
from pathlib import Path

from distsage.errors import UserError

VARIABLE = "DISTSAGE_KERNELS"
"""The environment variable that forces a level, downwards; child processes inherit it."""


class Level(enum.IntEnum):
    """Ascending: a processor of one level can run those below."""

    TORCH = 0  # the model by plain tensor operations; only samplers are compiled, for any processor
    AVX2 = 1
    AVX512 = 2
    AVX512_BF16 = 3

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


TARGETS = {
    Level.TORCH: ("x86-64", ""),
    Level.AVX2: ("x86-64-v3", ""),
    # LLVM divides 512-bit vectors into halves where early processors lowered their clock for them.
    Level.AVX512: ("x86-64-v4", "-prefer-256-bit"),
    Level.AVX512_BF16: ("x86-64-v4", "-prefer-256-bit,+avx512bf16"),
}
"""LLVM's processor and features of each level on x86-64; elsewhere the processor at hand counts."""

# As Linux names them. x86-64-v3 and x86-64-v4 are those of the System V psABI.
_FLAGS = {
    Level.AVX2: {"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"},
    Level.AVX512: {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    Level.AVX512_BF16: {"avx512_bf16"},
}

# What keeps PyTorch and its libraries to a level, too.
_LIBRARIES = {
    Level.TORCH: ("default", "SSE41", "SSE4_2"),
    Level.AVX2: ("avx2", "AVX2", "AVX2"),
    Level.AVX512: ("avx512", "AVX512_CORE", "AVX512"),
}


@cache
def of_processor() -> Level:
    """The highest level that this machine can run."""
    return from_flags(_processor_flags())


def from_flags(flags: set[str]) -> Level:
    """The highest level for which a processor has all `flags`, by Linux's names of them."""
    level = Level.TORCH
    for higher, needed in _FLAGS.items():
        if not needed <= flags:
            break
        level = higher
    return level


@cache
def chosen() -> Level:
    """The level of this process: the processor's, or the one that DISTSAGE_KERNELS forces.

    Raises:
        UserError: the variable names no level, or one that the processor cannot run.
    """
    forced = os.environ.get(VARIABLE)
    if not forced:
        return of_processor()
    known = {str(level): level for level in Level}
    if forced not in known:
        raise UserError(f"{VARIABLE} is {forced!r}; give one of {', '.join(known)}")
    if known[forced] > of_processor():
        raise UserError(
            f"{VARIABLE} is {forced}, but this processor's level is {of_processor()}; a level can "
            "be forced downwards only"
        )
    return known[forced]


def hold_to(level: Level) -> None:
    """Keep this process and its children to a level. Comes before numba or torch is imported.

    Below the processor's own level PyTorch is kept to it as well: replicas of a model on unlike
    processors stay equal only if the optimiser's arithmetic is the same on all of them.
    """
    os.environ[VARIABLE] = str(level)
    chosen.cache_clear()
    if level < of_processor():
        aten, onednn, mkl = _LIBRARIES[level]
        os.environ.update(
            ATEN_CPU_CAPABILITY=aten, ONEDNN_MAX_CPU_ISA=onednn, MKL_ENABLE_INSTRUCTIONS=mkl
        )


def processor_name() -> str:
    """The processor's name for people, such as "AMD EPYC 9654"."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _processor_flags() -> set[str]:
    for line in _cpuinfo():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


@cache
def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
