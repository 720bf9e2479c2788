"""The arithmetic of each PTX instruction, in LLVM's instructions: arithmetic, comparison, selection, conversion.

Rounding is to nearest even and fused only where PTX says fma; denormals are kept. Where LLVM leaves a case
undefined and PTX does not (shifts past the width, division by zero, conversions out of range), the PTX result is
selected. What is not in the tables, or has a modifier that they do not name, is a ``PtxError``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder

from tests.ptx.parser import Opcode, PtxError

PREDICATE = ir.IntType(1)
LLVM_TYPES: dict[str, ir.Type] = {f"{kind}{bits}": ir.IntType(bits) for kind in "bus" for bits in (8, 16, 32, 64)}
LLVM_TYPES |= {"pred": PREDICATE, "f16": ir.HalfType(), "f32": ir.FloatType(), "f64": ir.DoubleType()}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
ROUND_TO_INTEGER = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
HALF_TYPES = {"b64": "b32", "b32": "b16"}

Values = list[Any]


def bits_of(type_: str) -> int:
    return 1 if type_ == "pred" else int(type_[1:])


def is_float(type_: str) -> bool:
    return type_[0] == "f"


def intrinsic(b: Builder, name: str, result: ir.Type, *arguments: Any) -> Any:
    """Call of the LLVM intrinsic with that full name."""
    function = b.module.globals.get(name)
    if function is None:
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        function = ir.Function(b.module, signature, name)
    return b.call(function, arguments)


def _extended(b: Builder, type_: str, value: Any, to: ir.Type) -> Any:
    return b.sext(value, to) if type_[0] == "s" else b.zext(value, to)


def _no_rounding(op: Opcode) -> None:
    raise PtxError("without .rn ptxas may contract it")


# -- sums, products, quotients ---------------------------------------------------------------------------------


def _plain(integer: str, floating: str = "") -> Callable[[Builder, Opcode, Values], Any]:
    """One LLVM instruction for integers, one for floats."""

    def emit(b: Builder, op: Opcode, x: Values) -> Any:
        if not is_float(op.types[0]):
            return getattr(b, integer)(*x)
        if "rn" not in op.modifiers:
            _no_rounding(op)
        return getattr(b, floating)(*x)

    return emit


def _multiply(b: Builder, op: Opcode, x: Values) -> Any:
    type_ = op.types[0]
    if is_float(type_):
        return _plain("mul", "fmul")(b, op, x)
    if "lo" in op.modifiers:
        return b.mul(*x)
    wide = ir.IntType(2 * bits_of(type_))
    product = b.mul(*(_extended(b, type_, value, wide) for value in x))
    if "wide" in op.modifiers:
        return product
    return b.trunc(b.lshr(product, wide(bits_of(type_))), x[0].type)


def _integer_quotient(b: Builder, type_: str, dividend: Any, divisor: Any) -> Any:
    """Towards zero; by zero all ones, as GPUs give; the lowest number by -1 is itself."""
    ones, one = dividend.type(-1), dividend.type(1)
    zero_divisor = b.icmp_unsigned("==", divisor, dividend.type(0))
    if type_[0] != "s":
        return b.select(zero_divisor, ones, b.udiv(dividend, b.select(zero_divisor, one, divisor)))
    minus_one = b.icmp_unsigned("==", divisor, ones)
    quotient = b.sdiv(dividend, b.select(b.or_(zero_divisor, minus_one), one, divisor))
    return b.select(zero_divisor, ones, b.select(minus_one, b.neg(dividend), quotient))


def _divide(b: Builder, op: Opcode, x: Values) -> Any:
    return _plain("", "fdiv")(b, op, x) if is_float(op.types[0]) else _integer_quotient(b, op.types[0], *x)


def _remainder(b: Builder, op: Opcode, x: Values) -> Any:
    return b.sub(x[0], b.mul(_integer_quotient(b, op.types[0], *x), x[1]))


def _reciprocal(b: Builder, op: Opcode, x: Values) -> Any:
    return _plain("", "fdiv")(b, op, [ir.Constant(x[0].type, 1.0), x[0]])


def _of_floats(name: str) -> Callable[[Builder, Opcode, Values], Any]:
    """An LLVM intrinsic that PTX asks to be rounded to nearest."""

    def emit(b: Builder, op: Opcode, x: Values) -> Any:
        if "rn" not in op.modifiers:
            _no_rounding(op)
        return intrinsic(b, f"llvm.{name}.{op.types[0]}", x[0].type, *x)

    return emit


def _power_of_two(b: Builder, op: Opcode, x: Values) -> Any:
    """ex2.approx, rounded as the C library does; a GPU's is within 2 ulp of it."""
    if op.modifiers != ("approx",):
        raise PtxError("not implemented")
    return intrinsic(b, f"llvm.exp2.{op.types[0]}", x[0].type, x[0])


def _absolute(b: Builder, op: Opcode, x: Values) -> Any:
    if is_float(op.types[0]):
        return intrinsic(b, f"llvm.fabs.{op.types[0]}", x[0].type, x[0])
    return b.select(b.icmp_signed("<", x[0], x[0].type(0)), b.neg(x[0]), x[0])


def _negative(b: Builder, op: Opcode, x: Values) -> Any:
    return b.fneg(x[0]) if is_float(op.types[0]) else b.neg(x[0])


def _extreme(largest: bool) -> Callable[[Builder, Opcode, Values], Any]:
    """min or max. A NaN gives way to a number, and -0 < +0."""

    def emit(b: Builder, op: Opcode, x: Values) -> Any:
        left, right = x
        if not is_float(op.types[0]):
            compare = b.icmp_signed if op.types[0][0] == "s" else b.icmp_unsigned
            return b.select(compare(">" if largest else "<", left, right), left, right)
        integer = ir.IntType(bits_of(op.types[0]))
        both = [b.bitcast(value, integer) for value in x]
        of_equals = b.bitcast(b.and_(*both) if largest else b.or_(*both), left.type)
        chosen = b.select(b.fcmp_ordered(">" if largest else "<", left, right), left, right)
        chosen = b.select(b.fcmp_ordered("==", left, right), of_equals, chosen)
        return b.select(b.fcmp_unordered("uno", right, right), left, chosen)

    return emit


# -- bits ------------------------------------------------------------------------------------------------------


def _shift(left: bool) -> Callable[[Builder, Opcode, Values], Any]:
    """Amounts past the width give zeros, or the sign."""

    def emit(b: Builder, op: Opcode, x: Values) -> Any:
        value, amount = x
        bits = bits_of(op.types[0])
        fits = b.icmp_unsigned("<", amount, amount.type(bits))
        wanted = b.select(fits, amount, amount.type(bits - 1))
        resized = b.zext(wanted, value.type) if bits > 32 else b.trunc(wanted, value.type) if bits < 32 else wanted
        if not left and op.types[0][0] == "s":
            return b.ashr(value, resized)
        shifted = b.shl(value, resized) if left else b.lshr(value, resized)
        return b.select(fits, shifted, value.type(0))

    return emit


def _leading_zeros(b: Builder, op: Opcode, x: Values) -> Any:
    bits = bits_of(op.types[0])
    count = intrinsic(b, f"llvm.ctlz.i{bits}", x[0].type, x[0], PREDICATE(0))
    return b.trunc(count, ir.IntType(32)) if bits == 64 else count


def _permute_bytes(b: Builder, op: Opcode, x: Values) -> Any:
    """prmt: each nibble of the selector picks one of the eight bytes of two words, or that byte's sign."""
    wide, byte_type = ir.IntType(64), ir.IntType(8)
    both = b.or_(b.zext(x[0], wide), b.shl(b.zext(x[1], wide), wide(32)))
    result: Any = x[0].type(0)
    for k in range(4):
        nibble = b.lshr(x[2], x[2].type(4 * k))
        place = b.zext(b.shl(b.and_(nibble, x[2].type(7)), x[2].type(3)), wide)
        byte = b.trunc(b.lshr(both, place), byte_type)
        is_sign = b.trunc(b.lshr(nibble, x[2].type(3)), PREDICATE)
        byte = b.select(is_sign, b.ashr(byte, byte_type(7)), byte)
        result = b.or_(result, b.shl(b.zext(byte, x[0].type), x[0].type(8 * k)))
    return result


def _dot_product(b: Builder, op: Opcode, x: Values) -> Any:
    """dp2a.lo.u32.u32: the halves of the first word by the low two bytes of the second, added to the third."""
    word = x[0].type
    low = b.mul(b.and_(x[0], word(0xFFFF)), b.and_(x[1], word(0xFF)))
    high = b.mul(b.lshr(x[0], word(16)), b.and_(b.lshr(x[1], word(8)), word(0xFF)))
    return b.add(x[2], b.add(low, high))


# -- comparison, selection, conversion -------------------------------------------------------------------------


def _compare(b: Builder, op: Opcode, x: Values) -> Any:
    (condition,) = op.modifiers
    if condition == "nan":
        return b.fcmp_unordered("uno", *x)
    if not is_float(op.types[0]):
        return (b.icmp_signed if op.types[0][0] == "s" else b.icmp_unsigned)(COMPARISONS[condition], *x)
    unordered = condition.endswith("u") and condition not in COMPARISONS  # true with a NaN
    compare = b.fcmp_unordered if unordered else b.fcmp_ordered
    return compare(COMPARISONS[condition[:2]], *x)


def _select(b: Builder, op: Opcode, x: Values) -> Any:
    return b.select(x[2], x[0], x[1])


def _move(b: Builder, op: Opcode, x: Values) -> Any:
    return x[0]


def _float_to_integer(b: Builder, op: Opcode, value: Any) -> Any:
    """Rounds, then clamps to the range. NaN: zero, but the highest bit where either side has 64."""
    to, source = op.types
    (rounding,) = op.modifiers
    whole = intrinsic(b, f"llvm.{ROUND_TO_INTEGER[rounding]}.{source}", value.type, value)
    bits, kind = bits_of(to), "si" if to[0] == "s" else "ui"
    integer = ir.IntType(bits)
    result = intrinsic(b, f"llvm.fpto{kind}.sat.i{bits}.{source}", integer, whole)
    if max(bits, bits_of(source)) < 64:
        return result
    return b.select(b.fcmp_unordered("uno", value, value), integer(1 << bits - 1), result)


def _convert(b: Builder, op: Opcode, x: Values) -> Any:
    (value,) = x
    to, source = op.types
    target = LLVM_TYPES[to]
    if is_float(source) and not is_float(to):
        return _float_to_integer(b, op, value)
    if is_float(source) and to == source and op.modifiers:
        return intrinsic(b, f"llvm.{ROUND_TO_INTEGER[op.modifiers[0]]}.{source}", target, value)
    widens = bits_of(to) > bits_of(source)
    if op.modifiers != (("rn",) if is_float(to) and not (is_float(source) and widens) else ()):
        raise PtxError("rounding")
    if is_float(source):
        return b.fpext(value, target) if widens else b.fptrunc(value, target)
    if is_float(to):
        return b.sitofp(value, target) if source[0] == "s" else b.uitofp(value, target)
    if bits_of(to) > bits_of(source):
        return _extended(b, source, value, target)
    return b.trunc(value, target) if bits_of(to) < bits_of(source) else value


# -- extended precision ----------------------------------------------------------------------------------------


def emit_with_carry(b: Builder, op: Opcode, x: Values, carry: Any) -> tuple[Any, Any]:
    """add, sub, mad of 32 bits with the carry flag in (name ends in c) or out (.cc): (result, 64-bit carry)."""
    if op.types != ("u32",) or "wide" in op.modifiers:
        raise PtxError("not implemented")
    wide = ir.IntType(64)
    values = [b.zext(value, wide) for value in x]
    total = values[0]
    if len(values) == 3:
        product = b.mul(values[0], values[1])
        total = b.and_(product, wide(0xFFFFFFFF)) if "lo" in op.modifiers else b.lshr(product, wide(32))
    combine = b.sub if op.name.startswith("sub") else b.add
    total = combine(total, values[-1])
    if op.name.endswith("c"):
        total = combine(total, carry)
    return b.trunc(total, ir.IntType(32)), b.and_(b.lshr(total, wide(32)), wide(1))


def uses_carry(op: Opcode) -> bool:
    return op.name in ("addc", "subc", "mad", "madc") or "cc" in op.modifiers


# -- the table -------------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    emit: Callable[[Builder, Opcode, Values], Any]
    operands: int
    modifiers: frozenset[str] = frozenset()  # that may appear


ROUNDED = frozenset({"rn"})
OPERATIONS = {
    "add": Operation(_plain("add", "fadd"), 2, ROUNDED),
    "sub": Operation(_plain("sub", "fsub"), 2, ROUNDED),
    "mul": Operation(_multiply, 2, frozenset({"rn", "lo", "hi", "wide"})),
    "div": Operation(_divide, 2, ROUNDED),
    "rem": Operation(_remainder, 2),
    "rcp": Operation(_reciprocal, 1, ROUNDED),
    "sqrt": Operation(_of_floats("sqrt"), 1, ROUNDED),
    "fma": Operation(_of_floats("fma"), 3, ROUNDED),
    "ex2": Operation(_power_of_two, 1, frozenset({"approx"})),
    "abs": Operation(_absolute, 1),
    "neg": Operation(_negative, 1),
    "min": Operation(_extreme(largest=False), 2),
    "max": Operation(_extreme(largest=True), 2),
    "and": Operation(_plain("and_"), 2),
    "or": Operation(_plain("or_"), 2),
    "xor": Operation(_plain("xor"), 2),
    "not": Operation(_plain("not_"), 1),
    "shl": Operation(_shift(left=True), 2),
    "shr": Operation(_shift(left=False), 2),
    "clz": Operation(_leading_zeros, 1),
    "prmt": Operation(_permute_bytes, 3),
    "dp2a": Operation(_dot_product, 3, frozenset({"lo"})),
    "setp": Operation(_compare, 2, frozenset({"nan", *COMPARISONS, *(f"{c}u" for c in COMPARISONS)})),
    "selp": Operation(_select, 3),
    "mov": Operation(_move, 1),
    "cvta": Operation(_move, 1, frozenset({"to", "global"})),
    "cvt": Operation(_convert, 1, frozenset({"rn", *ROUND_TO_INTEGER})),
}


def operand_types(op: Opcode) -> list[str]:
    """PTX types of the source operands. Raises ``PtxError`` for what is not implemented."""
    operation = OPERATIONS.get(op.name)
    if operation is None or not set(op.modifiers) <= operation.modifiers or not op.types:
        raise PtxError("not implemented")
    types = [op.types[-1]] * operation.operands
    if op.name in ("shl", "shr"):
        types[1] = "u32"
    if op.name == "selp":
        types[2] = "pred"
    return types


def result_type(op: Opcode) -> str:
    if op.name == "setp":
        return "pred"
    if op.name == "clz":
        return "u32"
    if "wide" in op.modifiers:
        return f"{op.types[0][0]}{2 * bits_of(op.types[0])}"
    return op.types[0]
