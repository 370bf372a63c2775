"""Sixteen float32 numbers in registers, for numba kernels; and prefetching.

numba keeps no array in registers, and its loops over short rows spend more time on their ends than
on their middle; a sum of rows that stays in registers takes half the time. The type here is LLVM's
`<16 x float>`: one AVX-512 register, or two of AVX2, or four of NEON.

A row is named by its address (`row`) and an array that gives its type and width. It is read and
written at `min(column, width - 16)`, so that the last vector of a row overlaps the one before
instead of leaving a remainder; rows narrower than 16 are masked. An overlapped column is computed
and written twice with the same result, so a kernel that overwrites its input takes care.

Arrays hold float32, or bfloat16 as uint16, or float16 as int16 (numba has neither type).
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

LANES = 16
CACHE_LINE = 64
"""Bytes."""


class _Float32x16(types.Type):
    def __init__(self) -> None:
        super().__init__(name="float32x16")


float32x16 = _Float32x16()

_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
_VECTOR = ir.VectorType(_F32, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)
_STORED = {
    types.float32: _F32,
    types.uint16: ir.IntType(16),  # bfloat16: the upper half of a float32
    types.int16: ir.HalfType(),
}


class _BFloat16(ir.Type):
    """LLVM's type, which llvmlite does not name."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


def host_has(feature: str) -> bool:
    """Whether this processor has a feature, by LLVM's name for it; kernels are compiled for it."""
    return bool(binding.get_host_cpu_features().get(feature, False))


@register_model(_Float32x16)
class _Float32x16Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: types.Type) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


@intrinsic
def zeros16(typingctx: Any) -> tuple[Any, Callable]:
    """Sixteen zeros."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(_VECTOR, None)

    return float32x16(), codegen


@intrinsic
def add16(typingctx: Any, a: Any, b: Any) -> tuple[Any, Callable]:
    """Element by element, a + b."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args)

    return float32x16(a, b), codegen


@intrinsic
def scale16(typingctx: Any, a: Any, factor: Any) -> tuple[Any, Callable]:
    """Element by element, a * factor, a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fmul(args[0], _splat(builder, args[1]))

    return float32x16(a, types.float32), codegen


@intrinsic
def positive16(typingctx: Any, a: Any, gate: Any) -> tuple[Any, Callable]:
    """Element by element, a where gate > 0, otherwise 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.Constant(_VECTOR, None)
        return builder.select(builder.fcmp_ordered(">", args[1], zero), args[0], zero)

    return float32x16(a, gate), codegen


@intrinsic
def drop16(
    typingctx: Any, a: Any, key: Any, array: Any, column: Any, threshold: Any
) -> tuple[Any, Callable]:
    """Element by element, a, or 0 where 32 hashed bits of (key, column) are below threshold.

    The hash is that of the column (`_hash`); the key is a uint64, the threshold a uint32.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, key, array, column, threshold = args
        _, first = _clip(context, builder, signature.args[2], array, column)
        x = builder.add(_splat(builder, builder.trunc(first, _I32)), _lanes())
        x = _hash(builder, x, key)
        keep = builder.icmp_unsigned(">=", x, _splat(builder, threshold))
        return builder.select(keep, a, ir.Constant(_VECTOR, None))

    return float32x16(a, types.uint64, array, types.intp, types.uint32), codegen


@intrinsic
def row(typingctx: Any, array: Any, index: Any) -> tuple[Any, Callable]:
    """Address of a row of a 2-D array whose rows are contiguous."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        size = cgutils.unpack_tuple(builder, struct.strides, 2)[0]
        return builder.add(builder.ptrtoint(struct.data, _I64), builder.mul(args[1], size))

    return types.intp(array, types.intp), codegen


@intrinsic
def slot_row(
    typingctx: Any, first: Any, second: Any, third: Any, slot: Any
) -> tuple[Any, Callable]:
    """Address of a row of three contiguous arrays of one type and width, counted through them.

    By arithmetic: as a function of numba's it would count references to the arrays at every call.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, array)
            for kind, array in zip(signature.args[:3], args[:3], strict=True)
        ]
        # Not from the strides: numpy gives an array without rows any strides.
        width = cgutils.unpack_tuple(builder, arrays[0].shape, 2)[1]
        size = builder.mul(width, _I64(_bytes(_STORED[signature.args[0].dtype])))
        base, begin, row = None, _I64(0), args[3]
        for array in arrays:
            at = builder.ptrtoint(array.data, _I64)
            at = builder.sub(at, builder.mul(begin, size))  # where its row `-begin` would be
            base = (
                at
                if base is None
                else builder.select(builder.icmp_signed("<", row, begin), base, at)
            )
            begin = builder.add(begin, cgutils.unpack_tuple(builder, array.shape, 2)[0])
        return builder.add(base, builder.mul(row, size))

    return types.intp(first, second, third, types.intp), codegen


@intrinsic
def load16(typingctx: Any, array: Any, row: Any, column: Any) -> tuple[Any, Callable]:
    """Read 16 elements of a row from min(column, width - 16) on; zeros beyond the row."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = _STORED[signature.args[0].dtype]
        stored = ir.VectorType(kind, LANES)
        pointer, width = _locate(context, builder, signature.args[0], args, stored)
        with builder.if_else(_is_narrow(builder, width)) as (narrow, wide):
            with narrow:
                few = _masked_load(builder, pointer, kind, width)
                narrow_end = builder.block
            with wide:
                many = builder.load(pointer, align=_bytes(kind))
                wide_end = builder.block
        value = builder.phi(stored)
        value.add_incoming(few, narrow_end)
        value.add_incoming(many, wide_end)
        return _to_float32(builder, value, kind)

    return float32x16(array, types.intp, types.intp), codegen


@intrinsic
def store16(typingctx: Any, array: Any, row: Any, column: Any, value: Any) -> tuple[Any, Callable]:
    """Write 16 elements of a row from min(column, width - 16) on; nothing beyond the row.

    To bfloat16 and float16 it rounds to nearest, ties to even.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = _STORED[signature.args[0].dtype]
        stored = ir.VectorType(kind, LANES)
        pointer, width = _locate(context, builder, signature.args[0], args, stored)
        vector = _from_float32(builder, args[3], kind)
        with builder.if_else(_is_narrow(builder, width)) as (narrow, wide):
            with narrow:
                signature = ir.FunctionType(ir.VoidType(), [stored, pointer.type, _I32, _MASK])
                masked = cgutils.get_or_insert_function(
                    builder.module, signature, f"llvm.masked.store.{_suffix(kind)}"
                )
                mask = _mask(builder, width)
                builder.call(masked, [vector, pointer, _I32(_bytes(kind)), mask])
            with wide:
                builder.store(vector, pointer, align=_bytes(kind))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, value), codegen


@intrinsic
def load16_exactly(typingctx: Any, array: Any, row: Any, column: Any) -> tuple[Any, Callable]:
    """Read 16 elements of a row from this very column on; zeros beyond the row."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = _STORED[signature.args[0].dtype]
        stored = ir.VectorType(kind, LANES)
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        width = cgutils.unpack_tuple(builder, struct.shape, 2)[1]
        first = builder.inttoptr(args[1], kind.as_pointer())
        pointer = builder.bitcast(builder.gep(first, [args[2]]), stored.as_pointer())
        value = _masked_load(builder, pointer, kind, builder.sub(width, args[2]))
        return _to_float32(builder, value, kind)

    return float32x16(array, types.intp, types.intp), codegen


@intrinsic
def mark16(
    typingctx: Any, marks: Any, index: Any, array: Any, column: Any, a: Any
) -> tuple[Any, Callable]:
    """Set bit `index % 64` of `marks[index // 64]` in the columns where a is not zero.

    Marks are uint64 `[., >= 16]`; the columns are those that `load16` reads from a row of the
    array.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, word = _locate_marks(context, builder, signature.args, args)
        nonzero = builder.fcmp_unordered("!=", args[4], ir.Constant(_VECTOR, None))
        word = builder.select(nonzero, word, ir.Constant(word.type, None))
        builder.store(builder.or_(builder.load(pointer, align=8), word), pointer, align=8)
        return context.get_dummy_value()

    return types.void(marks, types.intp, array, types.intp, a), codegen


@intrinsic
def where_marked16(
    typingctx: Any, marks: Any, index: Any, array: Any, column: Any, a: Any
) -> tuple[Any, Callable]:
    """Element by element, a where `mark16` has set that bit, otherwise 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, word = _locate_marks(context, builder, signature.args, args)
        found = builder.and_(builder.load(pointer, align=8), word)
        zeros = ir.Constant(found.type, None)
        marked = builder.icmp_unsigned("!=", found, zeros)
        return builder.select(marked, args[4], ir.Constant(_VECTOR, None))

    return float32x16(marks, types.intp, array, types.intp, a), codegen


@intrinsic(prefer_literal=True)
def add_scaled_rows(
    typingctx: Any,
    to: Any,
    rows: Any,
    row_size: Any,
    scales: Any,
    scale_size: Any,
    chosen: Any,
    count: Any,
) -> tuple[Any, Callable]:
    """`to += sum of scales[r] * rows[r]` over the bits r that are set in `chosen`, a uint64.

    All are float32: `to` and the rows are addresses of `count` vectors, a literal; the sums stay in
    registers. Rows lie row_size bytes apart, scales scale_size bytes.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, rows, row_size, scales, scale_size, chosen, _ = args
        count = signature.args[-1].literal_value
        multiply_add = _multiply_add(builder)
        to = _vectors(builder, to, count)
        begin = [builder.load(p, align=4) for p in to]
        with _set_bits(builder, chosen, begin) as (r, sums, carry):
            scale = builder.add(scales, builder.mul(r, scale_size))
            scale = _splat(builder, builder.load(builder.inttoptr(scale, _F32.as_pointer())))
            row = _vectors(builder, builder.add(rows, builder.mul(r, row_size)), count)
            carry(
                builder.call(multiply_add, [scale, builder.load(p, align=4), a])
                for p, a in zip(row, sums, strict=True)
            )
        for p, a in zip(to, sums, strict=True):
            builder.store(a, p, align=4)
        return context.get_dummy_value()

    addresses = (types.intp,) * 5
    return types.void(*addresses, types.uint64, count), codegen


@intrinsic(prefer_literal=True)
def multiply_tile(
    typingctx: Any,
    out: Any,
    a: Any,
    a_size: Any,
    b: Any,
    length: Any,
    ahead: Any,
    rows: Any,
    count: Any,
) -> tuple[Any, Callable]:
    """`out[r] = sum over k of a[r, k] * b[k]`, for `rows` rows of `count` vectors, both literals.

    All are float32 and addresses: out `[rows, count, 16]` and b `[length, count, 16]` without gaps;
    a `[rows, length]`, a row every a_size bytes. The sums stay in registers.

    The memory has nothing to do meanwhile: for each k, the two cache lines are asked for that begin
    at the address `ahead[k]`; ahead is the address of int64 `[length]`.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, a, a_size, b, length, ahead, _, _ = args
        rows, count = (kind.literal_value for kind in signature.args[-2:])
        multiply_add = _multiply_add(builder)
        zero = ir.Constant(_VECTOR, None)
        before = builder.block
        head, body, end = (builder.append_basic_block(name) for name in ("k", "k_body", "k_end"))
        builder.branch(head)
        builder.position_at_end(head)
        k = builder.phi(_I64)
        sums = [builder.phi(_VECTOR) for _ in range(rows * count)]
        builder.cbranch(builder.icmp_signed("<", k, length), body, end)

        builder.position_at_end(body)
        column = builder.add(a, builder.mul(k, _I64(4)))
        row = builder.add(b, builder.mul(k, _I64(4 * LANES * count)))
        values = [builder.load(p, align=4) for p in _vectors(builder, row, count)]
        lines = builder.gep(builder.inttoptr(ahead, _I64.as_pointer()), [k])
        lines = builder.inttoptr(builder.load(lines), _BYTES)
        for offset in (0, CACHE_LINE):
            _prefetch(builder, builder.gep(lines, [_I64(offset)]))
        longer = []
        for r in range(rows):
            at = builder.add(column, builder.mul(a_size, _I64(r)))
            factor = _splat(builder, builder.load(builder.inttoptr(at, _F32.as_pointer())))
            longer += [
                builder.call(multiply_add, [factor, value, sums[r * count + i]])
                for i, value in enumerate(values)
            ]
        following = builder.add(k, _I64(1))
        builder.branch(head)
        for phi, first, next_ in zip(
            [k, *sums], [_I64(0), *[zero] * len(sums)], [following, *longer], strict=True
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(next_, body)
        builder.position_at_end(end)
        for value, p in zip(sums, _vectors(builder, out, rows * count), strict=True):
            builder.store(value, p, align=4)
        return context.get_dummy_value()

    return types.void(*(types.intp,) * 6, rows, count), codegen


@intrinsic
def hash16(
    typingctx: Any, to: Any, at: Any, array: Any, index: Any, count: Any, key: Any
) -> tuple[Any, Callable]:
    """`to[at + i]` = the hash (`_hash`) of the lower half of `array[index + i]`, for i < count.

    Sixteen at the most; anything may be written behind them, up to `to[at + 16]`. `to` is uint32,
    the array holds integers, the key is a uint64.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, at, array, index, count, key = args
        item = context.get_data_type(signature.args[2].dtype)
        source = context.make_array(signature.args[2])(context, builder, array).data
        target = context.make_array(signature.args[0])(context, builder, to).data
        kind, numbers = ir.VectorType(item, LANES), ir.VectorType(_I32, LANES)
        pointer = builder.bitcast(builder.gep(source, [index]), kind.as_pointer())
        values = _masked_load(builder, pointer, item, count)
        if item.width > 32:
            values = builder.trunc(values, numbers)
        pointer = builder.bitcast(builder.gep(target, [at]), numbers.as_pointer())
        builder.store(_hash(builder, values, key), pointer, align=4)
        return context.get_dummy_value()

    arguments = to, types.intp, array, types.intp, types.intp, types.uint64
    return types.void(*arguments), codegen


@intrinsic
def at_most16(typingctx: Any, array: Any, index: Any, bound: Any) -> tuple[Any, Callable]:
    """A uint64 whose bit i is set where `array[index + i] <= bound`, for sixteen uint32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = ir.VectorType(_I32, LANES)
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        pointer = builder.gep(struct.data, [args[1]])
        found = builder.load(builder.bitcast(pointer, numbers.as_pointer()), align=4)
        few = builder.icmp_unsigned("<=", found, _splat(builder, args[2]))
        return builder.zext(builder.bitcast(few, ir.IntType(LANES)), _I64)

    return types.uint64(array, types.intp, types.uint32), codegen


@intrinsic
def compress16(
    typingctx: Any, to: Any, at: Any, array: Any, index: Any, bits: Any
) -> tuple[Any, Callable]:
    """Write to `to[at:]` those of `array[index + i]` whose bit i < 16 is set, one after the other.

    Anything may be written behind them, up to `to[at + 16]`. The arrays hold integers of one size.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, at, array, index, bits = args
        item = context.get_data_type(signature.args[2].dtype)
        lanes = min(LANES, 512 // item.width)  # LLVM 22 crashes on more than a register
        kind, flags = ir.VectorType(item, lanes), ir.VectorType(ir.IntType(1), lanes)
        name = f"v{lanes}i{item.width}"
        masked_load = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(kind, [kind.as_pointer(), _I32, flags, kind]),
            f"llvm.masked.load.{name}.p0{name}",
        )
        compress = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(kind, [kind, flags, kind]),
            f"llvm.experimental.vector.compress.{name}",
        )
        source = context.make_array(signature.args[2])(context, builder, array).data
        target = context.make_array(signature.args[0])(context, builder, to).data
        nothing = ir.Constant(kind, None)
        size = item.width // 8
        for first in range(0, LANES, lanes):
            some = builder.trunc(builder.lshr(bits, _I64(first)), ir.IntType(lanes))
            mask = builder.bitcast(some, flags)
            pointer = builder.gep(source, [builder.add(index, _I64(first))])
            pointer = builder.bitcast(pointer, kind.as_pointer())
            values = builder.call(masked_load, [pointer, _I32(size), mask, nothing])
            values = builder.call(compress, [values, mask, nothing])
            pointer = builder.bitcast(builder.gep(target, [at]), kind.as_pointer())
            builder.store(values, pointer, align=size)
            at = builder.add(at, _count_bits(builder, builder.zext(some, _I64)))
        return context.get_dummy_value()

    return types.void(to, types.intp, array, types.intp, types.uint64), codegen


@intrinsic
def count_bits(typingctx: Any, bits: Any) -> tuple[Any, Callable]:
    """How many bits of a uint64 are set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _count_bits(builder, args[0])

    return types.intp(types.uint64), codegen


@intrinsic
def prefetch_row(typingctx: Any, array: Any, row: Any) -> tuple[Any, Callable]:
    """Ask for a row; into the second-level cache, which has room for many."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        width = cgutils.unpack_tuple(builder, struct.shape, 2)[1]
        size = builder.mul(width, _I64(_bytes(_STORED[signature.args[0].dtype])))
        last = builder.sub(size, _I64(1))
        pointer = builder.inttoptr(args[1], _BYTES)
        with cgutils.for_range_slice(builder, _I64(0), last, _I64(64), intp=_I64) as (at, _):
            _prefetch(builder, builder.gep(pointer, [at]))
        _prefetch(builder, builder.gep(pointer, [last]))
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def prefetch_item(typingctx: Any, array: Any, index: Any) -> tuple[Any, Callable]:
    """Ask for the cache line of one element of a 1-D array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        _prefetch(builder, builder.bitcast(builder.gep(struct.data, [args[1]]), _BYTES))
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


def _prefetch(builder: Any, pointer: Any) -> None:
    signature = ir.FunctionType(ir.VoidType(), [_BYTES, _I32, _I32, _I32])
    prefetch = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0i8")
    builder.call(prefetch, [pointer, _I32(0), _I32(2), _I32(1)])  # to read; level 2; data


@contextlib.contextmanager
def _set_bits(
    builder: Any, bits: Any, begin: list[Any]
) -> Iterator[tuple[Any, list[Any], Callable[[Iterable[Any]], None]]]:
    """A loop over the set bits of a uint64, in ascending order; the block builds its body.

    Gives the number of the bit, the values that the loop carries in registers, which are `begin` at
    first, and a function that the block calls, at its end, with the next ones. After the block the
    values are the last ones.
    """
    trailing_zeros = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_I64, [_I64, ir.IntType(1)]), "llvm.cttz.i64"
    )
    before = builder.block
    head, body, end = (builder.append_basic_block(name) for name in ("bits", "bit", "bits_end"))
    builder.branch(head)
    builder.position_at_end(head)
    left = builder.phi(_I64)
    left.add_incoming(bits, before)
    values = [builder.phi(value.type) for value in begin]
    for phi, value in zip(values, begin, strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_unsigned("!=", left, _I64(0)), body, end)
    builder.position_at_end(body)

    def carry(following: Iterable[Any]) -> None:
        for phi, value in zip(values, following, strict=True):
            phi.add_incoming(value, builder.block)

    yield builder.call(trailing_zeros, [left, ir.IntType(1)(1)]), values, carry
    left.add_incoming(builder.and_(left, builder.sub(left, _I64(1))), builder.block)
    builder.branch(head)
    builder.position_at_end(end)


def _count_bits(builder: Any, bits: Any) -> Any:
    signature = ir.FunctionType(_I64, [_I64])
    count = cgutils.get_or_insert_function(builder.module, signature, "llvm.ctpop.i64")
    return builder.call(count, [bits])


def _vectors(builder: Any, address: Any, count: int) -> list[Any]:
    """Pointers to so many vectors from an address on."""
    first = builder.inttoptr(address, _VECTOR.as_pointer())
    return [builder.gep(first, [_I64(i)]) for i in range(count)]


def _multiply_add(builder: Any) -> Any:
    """LLVM's function for a * b + c on vectors, rounded once where the processor can."""
    signature = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return cgutils.get_or_insert_function(builder.module, signature, "llvm.fmuladd.v16f32")


def _locate_marks(context: Any, builder: Any, kinds: Any, args: Any) -> tuple[Any, Any]:
    """Pointer to the marks of (marks, index, array, column), and the bit, sixteen times."""
    marks, index, array, column = args[:4]
    struct = context.make_array(kinds[0])(context, builder, marks)
    size = cgutils.unpack_tuple(builder, struct.strides, 2)[0]
    _, first = _clip(context, builder, kinds[2], array, column)
    at = builder.mul(builder.lshr(index, _I64(6)), size)
    at = builder.add(
        builder.add(builder.ptrtoint(struct.data, _I64), at), builder.shl(first, _I64(3))
    )
    words = ir.VectorType(_I64, LANES)
    bit = builder.shl(_I64(1), builder.and_(index, _I64(63)))
    return builder.inttoptr(at, words.as_pointer()), _splat(builder, bit)


def _clip(context: Any, builder: Any, array_type: Any, array: Any, column: Any) -> tuple[Any, Any]:
    """Width of an array's rows, and max(0, min(column, width - 16))."""
    struct = context.make_array(array_type)(context, builder, array)
    width = cgutils.unpack_tuple(builder, struct.shape, 2)[1]
    last = builder.sub(width, _I64(LANES))
    last = builder.select(_is_narrow(builder, width), _I64(0), last)
    return width, builder.select(builder.icmp_signed("<", column, last), column, last)


def _locate(
    context: Any, builder: Any, array_type: Any, args: Any, stored: ir.VectorType
) -> tuple[Any, Any]:
    """Pointer to the vector of (array, row, column), and the width."""
    array, row, column = args[:3]
    width, column = _clip(context, builder, array_type, array, column)
    first = builder.inttoptr(row, stored.element.as_pointer())
    return builder.bitcast(builder.gep(first, [column]), stored.as_pointer()), width


def _hash(builder: Any, x: Any, key: Any) -> Any:
    """Hash sixteen uint32.

    lowbias32 (Wellons, "Prospecting for hash functions", 2018) with the two halves of the key, a
    uint64, mixed in.
    """
    low = _splat(builder, builder.trunc(key, _I32))
    high = _splat(builder, builder.trunc(builder.lshr(key, _I64(32)), _I32))
    x = builder.add(builder.mul(x, _splat(builder, _I32(0x9E3779B9))), low)
    x = builder.xor(x, builder.lshr(x, _splat(builder, _I32(16))))
    x = builder.xor(builder.mul(x, _splat(builder, _I32(0x7FEB352D))), high)
    x = builder.xor(x, builder.lshr(x, _splat(builder, _I32(15))))
    x = builder.mul(x, _splat(builder, _I32(0x846CA68B)))
    return builder.xor(x, builder.lshr(x, _splat(builder, _I32(16))))


def _masked_load(builder: Any, pointer: Any, kind: Any, count: Any) -> Any:
    """The first `count` of 16 elements, and zeros."""
    stored = ir.VectorType(kind, LANES)
    signature = ir.FunctionType(stored, [pointer.type, _I32, _MASK, stored])
    masked = cgutils.get_or_insert_function(
        builder.module, signature, f"llvm.masked.load.{_suffix(kind)}"
    )
    mask = _mask(builder, count)
    return builder.call(masked, [pointer, _I32(_bytes(kind)), mask, ir.Constant(stored, None)])


def _is_narrow(builder: Any, width: Any) -> Any:
    return builder.icmp_signed("<", width, _I64(LANES))


def _lanes() -> Any:
    return ir.Constant(ir.VectorType(_I32, LANES), list(range(LANES)))


def _mask(builder: Any, width: Any) -> Any:
    return builder.icmp_signed("<", _lanes(), _splat(builder, builder.trunc(width, _I32)))


def _splat(builder: Any, scalar: Any) -> Any:
    vector = ir.VectorType(scalar.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _I32(0))
    zeros = ir.Constant(ir.VectorType(_I32, LANES), None)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _to_float32(builder: Any, value: Any, kind: Any) -> Any:
    if isinstance(kind, ir.HalfType):
        return builder.fpext(value, _VECTOR)
    if isinstance(kind, ir.IntType):
        wide = builder.zext(value, ir.VectorType(_I32, LANES))
        return builder.bitcast(builder.shl(wide, _splat(builder, _I32(16))), _VECTOR)
    return value


def _from_float32(builder: Any, value: Any, kind: Any) -> Any:
    if isinstance(kind, ir.HalfType):
        return builder.fptrunc(value, ir.VectorType(kind, LANES))
    if isinstance(kind, ir.IntType):
        rounded = builder.fptrunc(value, ir.VectorType(_BFloat16(), LANES))
        return builder.bitcast(rounded, ir.VectorType(kind, LANES))
    return value


def _bytes(kind: Any) -> int:
    if isinstance(kind, ir.IntType):
        return int(kind.width) // 8
    return 4 if isinstance(kind, ir.FloatType) else 2


def _suffix(kind: Any) -> str:
    name = f"{'i' if isinstance(kind, ir.IntType) else 'f'}{8 * _bytes(kind)}"
    return f"v{LANES}{name}.p0v{LANES}{name}"
