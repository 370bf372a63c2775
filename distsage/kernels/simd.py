"""Sixteen float32 numbers in registers, for numba kernels; and prefetching.

numba keeps no array in registers, and its loops over short rows spend more time on their ends than
on their middle; a sum of rows that stays in registers takes half the time. The type here is LLVM's
`<16 x float>`: one AVX-512 register, or two of AVX2.

A row is named by its address (`row`) and an array that gives its type and width. It is read and
written at `min(column, width - 16)`, so that the last vector of a row overlaps the one before
instead of leaving a remainder; rows narrower than 16 are masked. An overlapped column is computed
and written twice with the same result, so a kernel that overwrites its input takes care.

Arrays hold float32, or bfloat16 as uint16, or float16 as int16 (numba has neither type), or int8.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from distsage.kernels import llvm
from distsage.kernels.llvm import CACHE_LINE, LANES


class _Float32x16(types.Type):
    def __init__(self) -> None:
        super().__init__(name="float32x16")


float32x16 = _Float32x16()


@register_model(_Float32x16)
class _Float32x16Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: types.Type) -> None:
        super().__init__(dmm, fe_type, llvm.F32X16)


@intrinsic
def zeros16(typingctx: Any) -> tuple[Any, Callable]:
    """Sixteen zeros."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(llvm.F32X16, None)

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
        return builder.fmul(args[0], llvm.splat(builder, args[1]))

    return float32x16(a, types.float32), codegen


@intrinsic
def positive16(typingctx: Any, a: Any, gate: Any) -> tuple[Any, Callable]:
    """Element by element, a where gate > 0, otherwise 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.Constant(llvm.F32X16, None)
        return builder.select(builder.fcmp_ordered(">", args[1], zero), args[0], zero)

    return float32x16(a, gate), codegen


@intrinsic
def drop16(
    typingctx: Any, a: Any, key: Any, array: Any, column: Any, threshold: Any
) -> tuple[Any, Callable]:
    """Element by element, a, or 0 where 32 hashed bits of (key, column) are below threshold.

    The hash is that of the column (`hash_lanes`); the key is a uint64, the threshold a uint32.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, key, array, column, threshold = args
        _, first = llvm.clip(context, builder, signature.args[2], array, column)
        x = builder.add(llvm.splat(builder, builder.trunc(first, llvm.I32)), llvm.lane_numbers())
        x = llvm.hash_lanes(builder, x, key)
        keep = builder.icmp_unsigned(">=", x, llvm.splat(builder, threshold))
        return builder.select(keep, a, ir.Constant(llvm.F32X16, None))

    return float32x16(a, types.uint64, array, types.intp, types.uint32), codegen


@intrinsic
def row(typingctx: Any, array: Any, index: Any) -> tuple[Any, Callable]:
    """Address of a row of a 2-D array whose rows are contiguous."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        size = cgutils.unpack_tuple(builder, struct.strides, 2)[0]
        return builder.add(builder.ptrtoint(struct.data, llvm.I64), builder.mul(args[1], size))

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
        size = builder.mul(width, llvm.I64(llvm.size_of(llvm.STORED[signature.args[0].dtype])))
        base, begin, row = None, llvm.I64(0), args[3]
        for array in arrays:
            at = builder.ptrtoint(array.data, llvm.I64)
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
        kind = llvm.STORED[signature.args[0].dtype]
        stored = ir.VectorType(kind, LANES)
        pointer, width = llvm.lanes_at(context, builder, signature.args[0], args, stored)
        value = llvm.load_up_to(builder, pointer, kind, width)
        return llvm.to_float32(builder, value, kind)

    return float32x16(array, types.intp, types.intp), codegen


@intrinsic
def store16(typingctx: Any, array: Any, row: Any, column: Any, value: Any) -> tuple[Any, Callable]:
    """Write 16 elements of a row from min(column, width - 16) on; nothing beyond the row.

    To bfloat16 and float16 it rounds to nearest, ties to even; to int8 go whole numbers only.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = llvm.STORED[signature.args[0].dtype]
        stored = ir.VectorType(kind, LANES)
        pointer, width = llvm.lanes_at(context, builder, signature.args[0], args, stored)
        vector = llvm.from_float32(builder, args[3], kind)
        with builder.if_else(llvm.is_narrow(builder, width)) as (narrow, wide):
            with narrow:
                signature = ir.FunctionType(
                    ir.VoidType(), [stored, pointer.type, llvm.I32, llvm.I1X16]
                )
                masked = cgutils.get_or_insert_function(
                    builder.module, signature, f"llvm.masked.store.{llvm.suffix(kind)}"
                )
                mask = llvm.first_lanes(builder, width)
                builder.call(masked, [vector, pointer, llvm.I32(llvm.size_of(kind)), mask])
            with wide:
                builder.store(vector, pointer, align=llvm.size_of(kind))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, value), codegen


@intrinsic
def item(typingctx: Any, array: Any, index: Any) -> tuple[Any, Callable]:
    """One element of a 1-D array as float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = llvm.STORED[signature.args[0].dtype]
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), kind.as_pointer())
        return llvm.to_float32(builder, builder.load(pointer), kind)

    return types.float32(array, types.intp), codegen


@intrinsic
def load16_exactly(typingctx: Any, array: Any, row: Any, column: Any) -> tuple[Any, Callable]:
    """Read 16 elements of a row from this very column on; zeros beyond the row."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = llvm.STORED[signature.args[0].dtype]
        stored = ir.VectorType(kind, LANES)
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        width = cgutils.unpack_tuple(builder, struct.shape, 2)[1]
        first = builder.inttoptr(args[1], kind.as_pointer())
        pointer = builder.bitcast(builder.gep(first, [args[2]]), stored.as_pointer())
        value = llvm.masked_load(builder, pointer, kind, builder.sub(width, args[2]))
        return llvm.to_float32(builder, value, kind)

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
        pointer, word = llvm.marks_at(context, builder, signature.args, args)
        nonzero = builder.fcmp_unordered("!=", args[4], ir.Constant(llvm.F32X16, None))
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
        pointer, word = llvm.marks_at(context, builder, signature.args, args)
        found = builder.and_(builder.load(pointer, align=8), word)
        zeros = ir.Constant(found.type, None)
        marked = builder.icmp_unsigned("!=", found, zeros)
        return builder.select(marked, args[4], ir.Constant(llvm.F32X16, None))

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
        multiply_add = llvm.multiply_add(builder)
        to = llvm.vectors_at(builder, to, count)
        begin = [builder.load(p, align=4) for p in to]
        with llvm.each_set_bit(builder, chosen, begin) as (r, sums, carry):
            scale = builder.add(scales, builder.mul(r, scale_size))
            scale = llvm.splat(
                builder, builder.load(builder.inttoptr(scale, llvm.F32.as_pointer()))
            )
            row = llvm.vectors_at(builder, builder.add(rows, builder.mul(r, row_size)), count)
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
    asks: Any,
    rows: Any,
    count: Any,
) -> tuple[Any, Callable]:
    """`out[r] = sum over k of a[r, k] * b[k]`, for `rows` rows of `count` vectors: literals.

    All are float32 and addresses: out `[rows, count, 16]` and b `[length, count, 16]` without gaps;
    a `[rows, length]`, a row every a_size bytes. The sums stay in registers.

    The memory has nothing to do meanwhile. Where `asks`, a literal, is 1, the two cache lines are
    asked for, for each k, that begin at the address `ahead[k]`; ahead is the address of int64
    `[length]`.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, a, a_size, b, length, ahead, _, _, _ = args
        asks, rows, count = (kind.literal_value for kind in signature.args[-3:])
        multiply_add = llvm.multiply_add(builder)
        zero = ir.Constant(llvm.F32X16, None)
        before = builder.block
        head, body, end = (builder.append_basic_block(name) for name in ("k", "k_body", "k_end"))
        builder.branch(head)
        builder.position_at_end(head)
        k = builder.phi(llvm.I64)
        sums = [builder.phi(llvm.F32X16) for _ in range(rows * count)]
        builder.cbranch(builder.icmp_signed("<", k, length), body, end)

        builder.position_at_end(body)
        column = builder.add(a, builder.mul(k, llvm.I64(4)))
        row = builder.add(b, builder.mul(k, llvm.I64(4 * LANES * count)))
        values = [builder.load(p, align=4) for p in llvm.vectors_at(builder, row, count)]
        if asks:
            lines = builder.gep(builder.inttoptr(ahead, llvm.I64.as_pointer()), [k])
            lines = builder.inttoptr(builder.load(lines), llvm.BYTES)
            for offset in (0, CACHE_LINE):
                llvm.prefetch(builder, builder.gep(lines, [llvm.I64(offset)]))
        longer = []
        for r in range(rows):
            at = builder.add(column, builder.mul(a_size, llvm.I64(r)))
            factor = llvm.splat(builder, builder.load(builder.inttoptr(at, llvm.F32.as_pointer())))
            longer += [
                builder.call(multiply_add, [factor, value, sums[r * count + i]])
                for i, value in enumerate(values)
            ]
        following = builder.add(k, llvm.I64(1))
        builder.branch(head)
        for phi, first, next_ in zip(
            [k, *sums], [llvm.I64(0), *[zero] * len(sums)], [following, *longer], strict=True
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(next_, body)
        builder.position_at_end(end)
        for value, p in zip(sums, llvm.vectors_at(builder, out, rows * count), strict=True):
            builder.store(value, p, align=4)
        return context.get_dummy_value()

    return types.void(*(types.intp,) * 6, asks, rows, count), codegen


@intrinsic
def prefetch_row(typingctx: Any, array: Any, row: Any) -> tuple[Any, Callable]:
    """Ask for a row; into the second-level cache, which has room for many."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        width = cgutils.unpack_tuple(builder, struct.shape, 2)[1]
        size = builder.mul(width, llvm.I64(llvm.size_of(llvm.STORED[signature.args[0].dtype])))
        last = builder.sub(size, llvm.I64(1))
        pointer = builder.inttoptr(args[1], llvm.BYTES)
        with cgutils.for_range_slice(builder, llvm.I64(0), last, llvm.I64(64), intp=llvm.I64) as (
            at,
            _,
        ):
            llvm.prefetch(builder, builder.gep(pointer, [at]))
        llvm.prefetch(builder, builder.gep(pointer, [last]))
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def prefetch_item(typingctx: Any, array: Any, index: Any) -> tuple[Any, Callable]:
    """Ask for the cache line of one element of a 1-D array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        llvm.prefetch(builder, builder.bitcast(builder.gep(struct.data, [args[1]]), llvm.BYTES))
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def claim(typingctx: Any, counter: Any, step: Any) -> tuple[Any, Callable]:
    """Take the next `step` numbers of a counter, int64 `[1]`, that threads share; the first one."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", struct.data, args[1], "monotonic")

    return types.intp(counter, types.intp), codegen
