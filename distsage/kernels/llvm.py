"""Pieces of LLVM's intermediate code that the intrinsics of `distsage.kernels.simd` are made of.

Runs while a kernel is compiled, wherever one is imported.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from distsage.kernels.level import Level, chosen

LANES = 16
CACHE_LINE = 64
"""Bytes."""

F32 = ir.FloatType()
I8 = ir.IntType(8)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
BYTES = I8.as_pointer()
F32X16 = ir.VectorType(F32, LANES)
I1X16 = ir.VectorType(ir.IntType(1), LANES)
I32X16 = ir.VectorType(I32, LANES)


class BFloat16(ir.Type):
    """LLVM's type, which llvmlite does not name."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat16)

    def __hash__(self) -> int:
        return hash(BFloat16)


STORED = {
    types.float32: F32,
    types.uint16: ir.IntType(16),  # bfloat16: the upper half of a float32
    types.int16: ir.HalfType(),
    types.int8: I8,
}


def prefetch(builder: Any, pointer: Any) -> None:
    """Ask for a cache line, to read, into the second-level cache."""
    signature = ir.FunctionType(ir.VoidType(), [BYTES, I32, I32, I32])
    prefetch = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0i8")
    builder.call(prefetch, [pointer, I32(0), I32(2), I32(1)])  # to read; level 2; data


@contextlib.contextmanager
def each_set_bit(
    builder: Any, bits: Any, begin: list[Any]
) -> Iterator[tuple[Any, list[Any], Callable[[Iterable[Any]], None]]]:
    """A loop over the set bits of a uint64, in ascending order; the block builds its body.

    Gives the number of the bit, the values that the loop carries in registers, which are `begin` at
    first, and a function that the block calls, at its end, with the next ones. After the block the
    values are the last ones.
    """
    trailing_zeros = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(I64, [I64, ir.IntType(1)]), "llvm.cttz.i64"
    )
    before = builder.block
    head, body, end = (builder.append_basic_block(name) for name in ("bits", "bit", "bits_end"))
    builder.branch(head)
    builder.position_at_end(head)
    left = builder.phi(I64)
    left.add_incoming(bits, before)
    values = [builder.phi(value.type) for value in begin]
    for phi, value in zip(values, begin, strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_unsigned("!=", left, I64(0)), body, end)
    builder.position_at_end(body)

    def carry(following: Iterable[Any]) -> None:
        for phi, value in zip(values, following, strict=True):
            phi.add_incoming(value, builder.block)

    yield builder.call(trailing_zeros, [left, ir.IntType(1)(1)]), values, carry
    left.add_incoming(builder.and_(left, builder.sub(left, I64(1))), builder.block)
    builder.branch(head)
    builder.position_at_end(end)


def count_bits(builder: Any, bits: Any) -> Any:
    """How many bits of an i64 are set."""
    signature = ir.FunctionType(I64, [I64])
    count = cgutils.get_or_insert_function(builder.module, signature, "llvm.ctpop.i64")
    return builder.call(count, [bits])


def vectors_at(builder: Any, address: Any, count: int) -> list[Any]:
    """Pointers to so many vectors from an address on."""
    first = builder.inttoptr(address, F32X16.as_pointer())
    return [builder.gep(first, [I64(i)]) for i in range(count)]


def multiply_add(builder: Any) -> Any:
    """LLVM's function for a * b + c on vectors, rounded once where the processor can."""
    signature = ir.FunctionType(F32X16, [F32X16] * 3)
    return cgutils.get_or_insert_function(builder.module, signature, "llvm.fmuladd.v16f32")


def marks_at(context: Any, builder: Any, kinds: Any, args: Any) -> tuple[Any, Any]:
    """Pointer to the marks of (marks, index, array, column), and the bit, sixteen times."""
    marks, index, array, column = args[:4]
    struct = context.make_array(kinds[0])(context, builder, marks)
    size = cgutils.unpack_tuple(builder, struct.strides, 2)[0]
    _, first = clip(context, builder, kinds[2], array, column)
    at = builder.mul(builder.lshr(index, I64(6)), size)
    at = builder.add(
        builder.add(builder.ptrtoint(struct.data, I64), at), builder.shl(first, I64(3))
    )
    words = ir.VectorType(I64, LANES)
    bit = builder.shl(I64(1), builder.and_(index, I64(63)))
    return builder.inttoptr(at, words.as_pointer()), splat(builder, bit)


def clip(context: Any, builder: Any, array_type: Any, array: Any, column: Any) -> tuple[Any, Any]:
    """Width of an array's rows, and max(0, min(column, width - 16))."""
    struct = context.make_array(array_type)(context, builder, array)
    width = cgutils.unpack_tuple(builder, struct.shape, 2)[1]
    last = builder.sub(width, I64(LANES))
    last = builder.select(is_narrow(builder, width), I64(0), last)
    return width, builder.select(builder.icmp_signed("<", column, last), column, last)


def lanes_at(
    context: Any, builder: Any, array_type: Any, args: Any, stored: ir.VectorType
) -> tuple[Any, Any]:
    """Pointer to the vector of (array, row, column), and the width."""
    array, row, column = args[:3]
    width, column = clip(context, builder, array_type, array, column)
    first = builder.inttoptr(row, stored.element.as_pointer())
    return builder.bitcast(builder.gep(first, [column]), stored.as_pointer()), width


def hash_lanes(builder: Any, x: Any, key: Any) -> Any:
    """Hash sixteen uint32.

    lowbias32 (Wellons, "Prospecting for hash functions", 2018) with the two halves of the key, a
    uint64, mixed in.
    """
    low = splat(builder, builder.trunc(key, I32))
    high = splat(builder, builder.trunc(builder.lshr(key, I64(32)), I32))
    x = builder.add(builder.mul(x, splat(builder, I32(0x9E3779B9))), low)
    x = builder.xor(x, builder.lshr(x, splat(builder, I32(16))))
    x = builder.xor(builder.mul(x, splat(builder, I32(0x7FEB352D))), high)
    x = builder.xor(x, builder.lshr(x, splat(builder, I32(15))))
    x = builder.mul(x, splat(builder, I32(0x846CA68B)))
    return builder.xor(x, builder.lshr(x, splat(builder, I32(16))))


def masked_load(builder: Any, pointer: Any, kind: Any, count: Any) -> Any:
    """The first `count` of 16 elements, and zeros."""
    stored = ir.VectorType(kind, LANES)
    signature = ir.FunctionType(stored, [pointer.type, I32, I1X16, stored])
    masked = cgutils.get_or_insert_function(
        builder.module, signature, f"llvm.masked.load.{suffix(kind)}"
    )
    mask = first_lanes(builder, count)
    return builder.call(masked, [pointer, I32(size_of(kind)), mask, ir.Constant(stored, None)])


def load_up_to(builder: Any, pointer: Any, kind: Any, count: Any) -> Any:
    """As `masked_load`, without a mask where there are sixteen or more."""
    with builder.if_else(is_narrow(builder, count)) as (narrow, wide):
        with narrow:
            few = masked_load(builder, pointer, kind, count)
            narrow_end = builder.block
        with wide:
            many = builder.load(pointer, align=size_of(kind))
            wide_end = builder.block
    value = builder.phi(few.type)
    value.add_incoming(few, narrow_end)
    value.add_incoming(many, wide_end)
    return value


def is_narrow(builder: Any, width: Any) -> Any:
    """Whether rows of this width have fewer than sixteen elements."""
    return builder.icmp_signed("<", width, I64(LANES))


def lane_numbers() -> Any:
    """The numbers 0 to 15."""
    return ir.Constant(I32X16, list(range(LANES)))


def first_lanes(builder: Any, width: Any) -> Any:
    """A mask of the first `width` lanes."""
    return builder.icmp_signed("<", lane_numbers(), splat(builder, builder.trunc(width, I32)))


def splat(builder: Any, scalar: Any) -> Any:
    """A scalar sixteen times."""
    vector = ir.VectorType(scalar.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    zeros = ir.Constant(I32X16, None)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def to_float32(builder: Any, value: Any, kind: Any) -> Any:
    """One element of an array's type, or sixteen, as float32."""
    many = isinstance(value.type, ir.VectorType)
    if kind == I8:
        return builder.sitofp(value, F32X16 if many else F32)
    if isinstance(kind, ir.HalfType):
        assert chosen() > Level.TORCH, "half precision needs a processor that converts it"
        return builder.fpext(value, F32X16 if many else F32)
    if isinstance(kind, ir.IntType):
        half = splat(builder, I32(16)) if many else I32(16)
        upper = builder.shl(builder.zext(value, I32X16 if many else I32), half)
        return builder.bitcast(upper, F32X16 if many else F32)
    return value


def from_float32(builder: Any, value: Any, kind: Any) -> Any:
    """Sixteen float32 in the type in which an array holds them.

    Halves are rounded to nearest, ties to even; int8 takes whole numbers only.
    """
    if kind == I8:
        return builder.fptosi(value, ir.VectorType(kind, LANES))
    if isinstance(kind, ir.HalfType):
        assert chosen() > Level.TORCH, "half precision needs a processor that converts it"
        return builder.fptrunc(value, ir.VectorType(kind, LANES))
    if isinstance(kind, ir.IntType):
        return _to_bfloat16(builder, value, ir.VectorType(kind, LANES))
    return value


def _to_bfloat16(builder: Any, value: Any, stored: Any) -> Any:
    """By the processor where it can; LLVM would otherwise call a function that no process has.

    The instruction takes numbers below 2**-126 for zero; the arithmetic rounds them like others.
    """
    if chosen() == Level.AVX512_BF16:
        rounded = builder.fptrunc(value, ir.VectorType(BFloat16(), LANES))
        return builder.bitcast(rounded, stored)
    bits = builder.bitcast(value, I32X16)
    odd = builder.and_(builder.lshr(bits, splat(builder, I32(16))), splat(builder, I32(1)))
    up = builder.add(bits, builder.add(odd, splat(builder, I32(0x7FFF))))
    quiet = builder.or_(bits, splat(builder, I32(0x400000)))  # a NaN must not become an infinity
    nan = builder.fcmp_unordered("uno", value, value)
    upper = builder.lshr(builder.select(nan, quiet, up), splat(builder, I32(16)))
    return builder.trunc(upper, stored)


def size_of(kind: Any) -> int:
    """Bytes of an element."""
    if isinstance(kind, ir.IntType):
        return int(kind.width) // 8
    return 4 if isinstance(kind, ir.FloatType) else 2


def suffix(kind: Any) -> str:
    """How LLVM's intrinsics name sixteen elements of a type and a pointer to them."""
    name = f"{'i' if isinstance(kind, ir.IntType) else 'f'}{8 * size_of(kind)}"
    return f"v{LANES}{name}.p0v{LANES}{name}"
