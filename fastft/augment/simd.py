"""Vectors as Numba values: sixteen int32 or float32 lanes, a 16 x 16 byte transpose, and scratch memory.

Numba has no vector type, and LLVM's loop vectoriser cannot turn some loops into vector code: the antialiased resize (each
output pixel has its own taps), the geometric ops (each pixel comes from another place in the source) and a byte transpose.
They are written here in plain LLVM vector operations, which LLVM lowers to AVX-512, AVX2, SSE or NEON, depending on the
machine. This works on the CPU only.
"""

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, register_model

from beton_tools.base.jit import njit
from fastft.augment.ops import CUBIC, LINEAR

LANES = 16

_I8, _I32 = ir.IntType(8), ir.IntType(32)
_BYTES, _INTS = ir.VectorType(_I8, LANES), ir.VectorType(_I32, LANES)


def _vector_type(name: str, vector: ir.VectorType) -> types.Type:
    """Return a Numba type with this name whose values are LLVM vectors."""

    class Vector(types.Type):
        def __init__(self) -> None:
            super().__init__(name)

    @register_model(Vector)
    class VectorModel(PrimitiveModel):
        def __init__(self, manager: Any, fe_type: types.Type) -> None:
            super().__init__(manager, fe_type, vector)

    return Vector()


_lanes = _vector_type("int32x16", _INTS)
_ARRAY = types.Array  # stands for any array type


def _vector_op(result: types.Type, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function that builds LLVM code, so that compiled code can call it with these types."""

    def decorate(build: Callable[..., Any]) -> Any:
        def type_call(typing_context: Any, *given: Any) -> Any:
            wanted = zip(arguments, given, strict=True)
            return result(*(own if fixed is _ARRAY else fixed for fixed, own in wanted)), generate

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = build(context, builder, signature, args)
            return context.get_dummy_value() if value is None else value

        names = ["typing_context", *(f"argument_{i}" for i in range(len(arguments)))]
        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        type_call.__name__, type_call.__doc__ = build.__name__, build.__doc__
        type_call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # Numba counts the arguments by it
        return intrinsic(type_call)

    return decorate


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Return the address of `array[index]` (uint8) as a pointer to 16 bytes."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _BYTES.as_pointer())


def _spread(builder: Any, scalar: Any) -> Any:
    first = builder.insert_element(ir.Constant(_INTS, ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(
        first, ir.Constant(_INTS, ir.Undefined), ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    )


@_vector_op(_lanes, types.int32)
def spread(context, builder, signature, args):
    """Copy an int32 to all sixteen lanes."""
    return _spread(builder, args[0])


@_vector_op(_lanes, _ARRAY, types.intp)
def load_bytes(context, builder, signature, args):
    """Load array[index : index + 16] (uint8), widened to int32 lanes. Unchecked."""
    pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
    return builder.zext(builder.load(pointer, align=1), _INTS)


@_vector_op(types.void, _ARRAY, types.intp, _ARRAY, types.intp)
def copy_bytes(context, builder, signature, args):
    """Set target[begin : begin + 16] = source[start : start + 16] (uint8). Unchecked."""
    value = builder.load(_pointer(context, builder, signature.args[0], args[0], args[1]), align=1)
    builder.store(value, _pointer(context, builder, signature.args[2], args[2], args[3]), align=1)


@_vector_op(_lanes, _lanes, _lanes, types.int32)
def multiply_add(context, builder, signature, args):
    """Return total + lanes * factor, wrapping int32."""
    return builder.add(args[0], builder.mul(args[1], _spread(builder, args[2])))


@_vector_op(types.void, _ARRAY, types.intp, _lanes, types.int32)
def store_clipped(context, builder, signature, args):
    """Set array[index : index + 16] = clip(lanes >> shift, 0, 255). Unchecked."""
    value = builder.ashr(args[2], _spread(builder, args[3]))
    zero, top = ir.Constant(_INTS, [0] * LANES), ir.Constant(_INTS, [255] * LANES)
    value = builder.select(builder.icmp_signed("<", value, zero), zero, value)
    value = builder.select(builder.icmp_signed(">", value, top), top, value)
    pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
    builder.store(builder.trunc(value, _BYTES), pointer, align=1)


def _interleave_halves(builder: Any, rows: list[Any]) -> list[Any]:
    """Do one of four stages: rows i and i + 8 become rows 2i and 2i + 1, with their bytes interleaved."""
    low = ir.Constant(_INTS, [i // 2 + LANES * (i % 2) for i in range(LANES)])
    high = ir.Constant(_INTS, [i // 2 + 8 + LANES * (i % 2) for i in range(LANES)])
    pairs = [(rows[i], rows[i + 8]) for i in range(8)]
    return [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in (low, high)]


@_vector_op(types.void, _ARRAY, types.intp, types.intp, types.intp, _ARRAY, types.intp, types.intp)
def transpose_bytes(context, builder, signature, args):
    """Set target[begin + i*pitch + r] = source[start + min(r, rows-1)*stride + i] for i, r < 16. Unchecked."""
    source, start, stride, rows, target, begin, pitch = args
    last = builder.sub(rows, ir.Constant(rows.type, 1))
    values = []
    for r in range(LANES):
        row = ir.Constant(rows.type, r)
        row = builder.select(builder.icmp_signed("<", row, last), row, last)
        index = builder.add(start, builder.mul(row, stride))
        values.append(builder.load(_pointer(context, builder, signature.args[0], source, index), align=1))
    for _ in range(4):
        values = _interleave_halves(builder, values)
    for i, value in enumerate(values):
        index = builder.add(begin, builder.mul(ir.Constant(pitch.type, i), pitch))
        builder.store(value, _pointer(context, builder, signature.args[4], target, index), align=1)


# -- sixteen float32 lanes: four neighbouring pixels of three channels, and four bytes after them ----------------------

_F32 = ir.FloatType()
_FLOATS = ir.VectorType(_F32, LANES)
_FOUR_FLOATS = ir.VectorType(_F32, 4)
_floats = _vector_type("float32x16", _FLOATS)


def _shuffle(builder: Any, vector: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Compute a * b + c, fused if the processor can do it."""
    return builder.fadd(builder.fmul(a, b, flags=["contract"]), c, flags=["contract"])


def _weights(builder: Any, powers: Sequence[Sequence[int]], t: Any) -> Any:
    """Compute the weights for four neighbours at `t`: polynomials with the coefficients `powers`, by Horner's rule."""
    t = _shuffle(builder, builder.insert_element(ir.Constant(_FOUR_FLOATS, ir.Undefined), t, _I32(0)), [0] * 4)
    *lower, total = [ir.Constant(_FOUR_FLOATS, [float(c) for c in power]) for power in powers]
    for power in reversed(lower):
        total = _fused(builder, total, t, power)
    return total


def _interpolators(powers: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Return (columns, rows) for one kind of interpolation. Its weights are polynomials with coefficients `powers`."""
    used = [any(power[k] for power in powers) for k in range(4)]

    @_vector_op(_floats, _ARRAY, types.intp, types.intp, types.float32)
    def columns(context, builder, signature, args):
        """Interpolate at t (float32) between four rows with four pixels each.

        They are `pitch` bytes apart and start at pixels[index].

        Unchecked: the four bytes after each row's pixels must be readable.
        """
        pixels, index, pitch, t = args
        weights, total = _weights(builder, powers, t), ir.Constant(_FLOATS, [0.0] * LANES)
        for k in range(4):
            if used[k]:
                row = builder.load(_pointer(context, builder, signature.args[0], pixels, index), align=1)
                row = builder.sitofp(builder.zext(row, _INTS), _FLOATS)
                total = _fused(builder, row, _shuffle(builder, weights, [k] * LANES), total)
            index = builder.add(index, pitch)
        return total

    @_vector_op(types.void, _floats, types.float32, _ARRAY, types.intp)
    def rows(context, builder, signature, args):
        """Set target[to : to + 3] to the interpolation at t (float32) between the four pixels.

        Overwrites target[to + 3]. Unchecked.
        """
        pixels, t, target, to = args
        weights = _shuffle(builder, _weights(builder, powers, t), [min(i // 3, 3) for i in range(LANES)])
        total = builder.fmul(pixels, weights)
        total = builder.fadd(total, _shuffle(builder, total, [(i + 6) % LANES for i in range(LANES)]))
        total = builder.fadd(_shuffle(builder, total, [0, 1, 2, 3]), _shuffle(builder, total, [3, 4, 5, 6]))
        data = context.make_array(signature.args[2])(context, builder, target).data
        pointer = builder.bitcast(builder.gep(data, [to]), _FOUR_FLOATS.as_pointer())
        builder.store(total, pointer, align=4)

    return columns, rows


columns_cubic, rows_cubic = _interpolators(CUBIC)
columns_linear, rows_linear = _interpolators(LINEAR)


@_vector_op(types.boolean, _ARRAY, types.intp, types.intp)
def is_flat(context, builder, signature, args):
    """Return True if 4 x 4 pixels are equal: four rows, `pitch` bytes apart, the first at pixels[index].

    Unchecked.
    """
    pixels, index, pitch = args
    first, unequal = None, ir.Constant(_BYTES, [0] * LANES)
    for _ in range(4):
        row = builder.load(_pointer(context, builder, signature.args[0], pixels, index), align=1)
        first = first or _shuffle(builder, row, [i % 3 for i in range(LANES)])
        unequal = builder.or_(unequal, builder.xor(row, first))
        index = builder.add(index, pitch)
    # four pixels are twelve bytes
    unequal = _shuffle(builder, unequal, [min(i, 11) for i in range(LANES)])
    bits = ir.IntType(8 * LANES)
    return builder.icmp_unsigned("==", builder.bitcast(unequal, bits), bits(0))


# -- scratch memory: consecutive parts in a flat uint8 array, and copies between flat arrays ---------------------------

CACHE_LINE = 64  # bytes. Every part begins at a multiple of it


@njit()
def round_up(n: int, multiple: int) -> int:
    return (n + multiple - 1) // multiple * multiple


@njit()
def take(scratch, at, size):
    """Return (the part with `size` bytes that begins at `at`, where the next part begins)."""
    return scratch[at : at + size], at + round_up(size, CACHE_LINE)


@njit()
def copy(source, target):
    """Set target = source, two flat arrays of equal length.

    It is fifteen times as fast as assigning a slice in Numba.
    """
    for i in range(np.uintp(source.size)):
        target[i] = source[i]
