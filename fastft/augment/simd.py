"""Vectors as Numba values: sixteen int32 lanes, one pixel as four float64, a 16 x 16 byte transpose.

Numba has no vector type, and LLVM's loop vectoriser turns neither the antialiased resize (a different window
of taps per output pixel) nor the geometric ops (another place in the source per pixel) nor a byte transpose
into vector code. They are written here in plain LLVM vector operations, which LLVM lowers to AVX-512, AVX2,
SSE or NEON, whatever the machine has. CPU only.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic as _intrinsic
from numba.extending import overload, register_model

LANES = 16

intrinsic: Any = _intrinsic  # its stub would have callers pass the typing context

_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_BYTES, _INTS = ir.VectorType(_I8, LANES), ir.VectorType(_I32, LANES)


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__("int32x16")


@register_model(_LanesType)
class _LanesModel(PrimitiveModel):
    def __init__(self, manager: Any, fe_type: types.Type) -> None:
        super().__init__(manager, fe_type, _INTS)


_lanes = _LanesType()


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Address of `array[index]` (uint8) as a pointer to 16 bytes."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _BYTES.as_pointer())


def _spread(builder: Any, scalar: Any) -> Any:
    first = builder.insert_element(ir.Constant(_INTS, ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(
        first, ir.Constant(_INTS, ir.Undefined), ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    )


@intrinsic
def spread(typingctx: Any, value: Any) -> Any:
    """int32 -> all sixteen lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _spread(builder, args[0])

    return _lanes(types.int32), codegen


@intrinsic
def load_bytes(typingctx: Any, array: Any, index: Any) -> Any:
    """array[index : index + 16] (uint8), widened to int32 lanes. Unchecked."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        return builder.zext(builder.load(pointer, align=1), _INTS)

    return _lanes(array, types.intp), codegen


@intrinsic
def multiply_add(typingctx: Any, total: Any, lanes: Any, factor: Any) -> Any:
    """total + lanes * factor, wrapping int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.add(args[0], builder.mul(args[1], _spread(builder, args[2])))

    return _lanes(_lanes, _lanes, types.int32), codegen


@intrinsic
def store_clipped(typingctx: Any, array: Any, index: Any, lanes: Any, shift: Any) -> Any:
    """array[index : index + 16] = clip(lanes >> shift, 0, 255). Unchecked."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.ashr(args[2], _spread(builder, args[3]))
        zero, top = ir.Constant(_INTS, [0] * LANES), ir.Constant(_INTS, [255] * LANES)
        value = builder.select(builder.icmp_signed("<", value, zero), zero, value)
        value = builder.select(builder.icmp_signed(">", value, top), top, value)
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        builder.store(builder.trunc(value, _BYTES), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, _lanes, types.int32), codegen


def _interleave_halves(builder: Any, rows: list[Any]) -> list[Any]:
    """One of four stages: rows i and i + 8 become rows 2i and 2i + 1, their bytes interleaved."""
    low = ir.Constant(_INTS, [i // 2 + LANES * (i % 2) for i in range(LANES)])
    high = ir.Constant(_INTS, [i // 2 + 8 + LANES * (i % 2) for i in range(LANES)])
    pairs = [(rows[i], rows[i + 8]) for i in range(8)]
    return [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in (low, high)]


@intrinsic
def transpose_bytes(
    typingctx: Any, source: Any, start: Any, stride: Any, rows: Any, target: Any, begin: Any, pitch: Any
) -> Any:
    """target[begin + i*pitch + r] = source[start + min(r, rows-1)*stride + i] for i, r < 16. Unchecked."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
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
        return context.get_dummy_value()

    intp = types.intp
    return types.void(source, intp, intp, intp, target, intp, intp), codegen


# -- one pixel as float64: red, green, blue and the byte after them ------------------------------------------

_QUAD = ir.VectorType(ir.DoubleType(), 4)


class _PixelType(types.Type):
    def __init__(self) -> None:
        super().__init__("float64x4")


@register_model(_PixelType)
class _PixelModel(PrimitiveModel):
    def __init__(self, manager: Any, fe_type: types.Type) -> None:
        super().__init__(manager, fe_type, _QUAD)


_pixel = _PixelType()


def _as_quad(builder: Any, value: Any) -> Any:
    """A vector as it is, a scalar in all four lanes."""
    if value.type == _QUAD:
        return value
    first = builder.insert_element(ir.Constant(_QUAD, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_I32, 4), [0] * 4))


def _define_operator(symbol: Callable, instruction: str) -> None:
    """Lets njit code write `symbol` between pixels and float64 scalars."""

    @intrinsic
    def apply(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*(_as_quad(builder, value) for value in args))

        return _pixel(a, b), codegen

    @overload(symbol)
    def implement(a, b):  # Numba compares bare signatures
        pixels = [isinstance(value, _PixelType) for value in (a, b)]
        scalars = [value == types.float64 for value in (a, b)]
        if any(pixels) and all(p or s for p, s in zip(pixels, scalars, strict=True)):
            return lambda a, b: apply(a, b)
        return None


_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")
_define_operator(operator.mul, "fmul")


@intrinsic
def load_pixel(typingctx: Any, array: Any, index: Any) -> Any:
    """array[index : index + 4] (uint8) as float64. Unchecked: one byte past the pixel must be readable."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        pointer = builder.bitcast(pointer, ir.VectorType(_I8, 4).as_pointer())
        return builder.uitofp(builder.load(pointer, align=1), _QUAD)

    return _pixel(array, types.intp), codegen


@intrinsic
def store_pixel(typingctx: Any, array: Any, index: Any, pixel: Any) -> Any:
    """array[index : index + 3] = pixel, clipped to 0..255 and truncated. Unchecked."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = args[2]
        low, high = ir.Constant(_QUAD, [0.0] * 4), ir.Constant(_QUAD, [255.0] * 4)
        value = builder.select(builder.fcmp_ordered(">", value, low), value, low)
        value = builder.select(builder.fcmp_ordered("<", value, high), value, high)
        value = builder.trunc(builder.fptosi(value, ir.VectorType(_I32, 4)), ir.VectorType(_I8, 4))
        red = _pointer(context, builder, signature.args[0], args[0], args[1])
        word = builder.bitcast(value, _I32)
        builder.store(builder.trunc(word, _I16), builder.bitcast(red, _I16.as_pointer()), align=1)
        blue = builder.gep(builder.bitcast(red, _I8.as_pointer()), [_I32(2)])
        builder.store(builder.extract_element(value, _I32(2)), blue)
        return context.get_dummy_value()

    return types.void(array, types.intp, _pixel), codegen


__all__ = [
    "LANES",
    "load_bytes",
    "load_pixel",
    "multiply_add",
    "spread",
    "store_clipped",
    "store_pixel",
    "transpose_bytes",
]
