"""Sixteen whole numbers in registers, for numba kernels: to hash them and to choose among them.

The types here are LLVM's `<16 x i32>` and `<16 x i64>`, in as many registers as the level needs.
Which of sixteen are chosen is said by the lower bits of a uint64, so that nothing branches on it:
how many of a vector are chosen nobody could predict.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from distsage.kernels import llvm
from distsage.kernels.level import Level, chosen
from distsage.kernels.llvm import I32, I64, LANES

_OTHERS_AT_ONCE = 8
"""Numbers that `ranks16` compares with before it branches."""


class _Integers16(types.Type):
    def __init__(self, bits: int) -> None:
        super().__init__(name=f"int{bits}x16")
        self.bits = bits


@register_model(_Integers16)
class _Integers16Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: _Integers16) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(ir.IntType(fe_type.bits), LANES))


@intrinsic
def items16(typingctx: Any, array: Any, index: Any, count: Any) -> tuple[Any, Callable]:
    """Read `array[index + i]` for i < count, sixteen at the most; zeros beyond the count."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, index, count = args
        item = context.get_data_type(signature.args[0].dtype)
        data = context.make_array(signature.args[0])(context, builder, array).data
        pointer = builder.gep(data, [index])
        pointer = builder.bitcast(pointer, ir.VectorType(item, LANES).as_pointer())
        return llvm.load_up_to(builder, pointer, item, count)

    return _Integers16(array.dtype.bitwidth)(array, types.intp, types.intp), codegen


@intrinsic
def hash16(typingctx: Any, numbers: Any, key: Any) -> tuple[Any, Callable]:
    """Element by element, the hash (`llvm.hash_lanes`) of the lower 32 bits, less 2**31.

    So hashes are compared as signed numbers, which takes AVX2 one instruction instead of two.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, key = args
        if signature.args[0].bits > 32:
            numbers = builder.trunc(numbers, llvm.I32X16)
        hashed = llvm.hash_lanes(builder, numbers, key)
        return builder.xor(hashed, llvm.splat(builder, I32(1 << 31)))

    return _Integers16(32)(numbers, types.uint64), codegen


@intrinsic
def at_most16(typingctx: Any, numbers: Any, bound: Any) -> tuple[Any, Callable]:
    """A uint64 whose bit i is set where number i, an int32, is not above the bound."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        few = builder.icmp_signed("<=", args[0], llvm.splat(builder, args[1]))
        return builder.zext(builder.bitcast(few, ir.IntType(LANES)), I64)

    return types.uint64(_Integers16(32), types.int32), codegen


@intrinsic
def ranks16(
    typingctx: Any, array: Any, index: Any, count: Any, numbers: Any
) -> tuple[Any, Callable]:
    """Element by element, how many of `array[index : index + count]`, int32, are smaller.

    Behind them the array holds the largest int32 seven times or more.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, index, count, numbers = args
        data = context.make_array(signature.args[0])(context, builder, array).data
        data = builder.gep(data, [index])
        ranks = cgutils.alloca_once_value(builder, ir.Constant(llvm.I32X16, None))
        step = I64(_OTHERS_AT_ONCE)
        with cgutils.for_range_slice(builder, I64(0), count, step, intp=I64) as (first, _):
            total = builder.load(ranks)
            for i in range(_OTHERS_AT_ONCE):
                other = builder.load(builder.gep(data, [builder.add(first, I64(i))]))
                smaller = builder.icmp_signed("<", llvm.splat(builder, other), numbers)
                total = builder.sub(total, builder.sext(smaller, llvm.I32X16))
            builder.store(total, ranks)
        return builder.load(ranks)

    return _Integers16(32)(array, types.intp, types.intp, _Integers16(32)), codegen


@intrinsic
def compress16(typingctx: Any, to: Any, at: Any, numbers: Any, bits: Any) -> tuple[Any, Callable]:
    """Write to `to[at:]` those of the numbers whose bit i < 16 is set, one after the other.

    Anything may be written behind them, up to `to[at + 16]`.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, at, numbers, bits = args
        data = context.make_array(signature.args[0])(context, builder, to).data
        level = chosen()
        compress = (
            _compress_at_once
            if level >= Level.AVX512
            else _compress_by_table
            if level == Level.AVX2
            else _compress_one_by_one
        )
        compress(builder, builder.gep(data, [at]), numbers, bits)
        return context.get_dummy_value()

    return types.void(to, types.intp, numbers, types.uint64), codegen


@intrinsic
def fill16(typingctx: Any, array: Any, index: Any, number: Any) -> tuple[Any, Callable]:
    """`array[index : index + 16] = number`, int32; numba's own loop looks at every index."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, index, number = args
        data = context.make_array(signature.args[0])(context, builder, array).data
        pointer = builder.bitcast(builder.gep(data, [index]), llvm.I32X16.as_pointer())
        builder.store(llvm.splat(builder, number), pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int32), codegen


@intrinsic
def count_bits(typingctx: Any, bits: Any) -> tuple[Any, Callable]:
    """How many bits of a uint64 are set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return llvm.count_bits(builder, args[0])

    return types.intp(types.uint64), codegen


def _compress_at_once(builder: Any, to: Any, numbers: Any, bits: Any) -> None:
    """By AVX-512's instruction for it."""
    item = numbers.type.element
    lanes = min(LANES, 512 // item.width)  # LLVM 22 crashes on more than a register
    kind, flags = ir.VectorType(item, lanes), ir.VectorType(ir.IntType(1), lanes)
    compress = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(kind, [kind, flags, kind]),
        f"llvm.experimental.vector.compress.v{lanes}i{item.width}",
    )
    for register, some in _registers(builder, numbers, bits, lanes):
        mask = builder.bitcast(builder.trunc(some, ir.IntType(lanes)), flags)
        register = builder.call(compress, [register, mask, ir.Constant(kind, None)])
        builder.store(register, builder.bitcast(to, kind.as_pointer()), align=item.width // 8)
        to = builder.gep(to, [llvm.count_bits(builder, some)])


def _compress_by_table(builder: Any, to: Any, numbers: Any, bits: Any) -> None:
    """By AVX2's permutation of eight words: a table has the order of each set of bits."""
    item = numbers.type.element
    words = item.width // 32
    lanes = 8 // words
    eight = ir.VectorType(I32, 8)
    permute = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(eight, [eight, eight]), "llvm.x86.avx2.permd"
    )
    table = _orders(builder, lanes)
    for register, some in _registers(builder, numbers, bits, lanes):
        order = builder.zext(builder.load(builder.gep(table, [I64(0), some])), eight)
        register = builder.call(permute, [builder.bitcast(register, eight), order])
        builder.store(register, builder.bitcast(to, eight.as_pointer()), align=item.width // 8)
        to = builder.gep(to, [llvm.count_bits(builder, some)])


def _orders(builder: Any, lanes: int) -> Any:
    """For each set of bits: the words of the lanes whose bit is set, and zeros. Eight bytes."""
    name = f"orders_of_{lanes}"
    entry = ir.VectorType(llvm.I8, 8)
    entries = ir.ArrayType(entry, 2**lanes)
    if name in builder.module.globals:
        return builder.module.globals[name]
    words = 8 // lanes
    orders = []
    for bits in range(2**lanes):
        order = [i * words + w for i in range(lanes) if bits >> i & 1 for w in range(words)]
        orders.append(ir.Constant(entry, order + [0] * (8 - len(order))))
    table = ir.GlobalVariable(builder.module, entries, name)
    table.initializer = ir.Constant(entries, orders)
    table.global_constant = True
    table.linkage = "internal"
    return table


def _registers(builder: Any, numbers: Any, bits: Any, lanes: int) -> list[tuple[Any, Any]]:
    """Sixteen numbers and their bits, so many at a time."""
    nothing = ir.Constant(numbers.type, ir.Undefined)
    some = I64(2**lanes - 1)
    return [
        (
            builder.shuffle_vector(
                numbers,
                nothing,
                ir.Constant(ir.VectorType(I32, lanes), list(range(first, first + lanes))),
            ),
            builder.and_(builder.lshr(bits, I64(first)), some),
        )
        for first in range(0, LANES, lanes)
    ]


def _compress_one_by_one(builder: Any, to: Any, numbers: Any, bits: Any) -> None:
    """Bit by bit."""
    place = cgutils.alloca_once_value(builder, numbers)
    source = builder.bitcast(place, to.type)
    with llvm.each_set_bit(builder, bits, [to]) as (i, (at,), carry):
        builder.store(builder.load(builder.gep(source, [i])), at)
        carry([builder.gep(at, [I64(1)])])
