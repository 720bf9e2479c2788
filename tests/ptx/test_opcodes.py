"""Instructions with edge cases compute what the PTX ISA says, against Python's integers and fractions.

All others, and these, are executed by `test_kernels` and by libdevice's sine below.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numba import cuda, float64

from fastft.augment.cuda_compile import compile_to_ptx
from tests.ptx.gpu import OLDEST
from tests.ptx.launch import Array, launch
from tests.ptx.memory import Memory
from tests.ptx.opcodes import bits_of
from tests.ptx.program import Program
from tests.ptx.snippets import execute

THREADS, COUNT = 128, 1024
REGISTERS = {"b16": "%h", "b32": "%r", "b64": "%d", "f32": "%f", "f64": "%g"}
Reference = Callable[..., Any]


def register(type_: str, number: int) -> str:
    kind = type_ if type_[0] == "f" else f"b{max(bits_of(type_), 16)}"
    return f"{REGISTERS[kind]}{number}"


def numpy_type(type_: str) -> np.dtype:
    kind = {"s": "i", "f": "f"}.get(type_[0], "u")
    return np.dtype(f"{kind}{bits_of(type_) // 8}")


EDGES = [
    0.0, -0.0, 0.5, 1.5, -2.5, 1.0, 3e9, -3e9, 1e19, -1e19, 2.0**63, math.inf, -math.inf, math.nan, 254.99, 5e-40,
]  # fmt: skip


def inputs(type_: str, seed: int) -> np.ndarray:
    """COUNT numbers of all magnitudes; with seeds 0 and 1, first all pairs of edge cases."""
    generator, dtype, bits = np.random.default_rng(seed), numpy_type(type_), bits_of(type_)
    with np.errstate(all="ignore"):
        if type_[0] == "f":
            numbers = generator.standard_normal(COUNT) * 10.0 ** generator.integers(-9, 20, COUNT)
            values, edges = numbers.astype(dtype), np.array(EDGES).astype(dtype)
        else:
            unsigned = f"u{bits // 8}"
            patterns = generator.integers(0, 2**64, COUNT, np.uint64) >> generator.integers(0, bits, COUNT, np.uint64)
            high = 1 << bits - 1
            limits = np.array([0, 1, 2, 3, bits - 1, bits, high - 1, high, 2 * high - 2, 2 * high - 1], np.uint64)
            values, edges = patterns.astype(unsigned).view(dtype), limits.astype(unsigned).view(dtype)
    if seed < 2:
        pairs = edges.repeat(len(edges)) if seed else np.tile(edges, len(edges))
        values[: len(pairs)] = pairs
    return values


def computed(statement: str, result: str, *given: tuple[str, np.ndarray]) -> np.ndarray:
    """The statement for every item: operands are $1, $2, ..., the result $0."""
    types = [result, *(type_ for type_, _ in given)]
    arrays = [np.zeros(COUNT, numpy_type(result)), *(values for _, values in given)]
    body = "mov.u32 %r7, %tid.x; mov.u32 %r8, %ctaid.x; shl.b32 %r8, %r8, 7; add.u32 %r7, %r7, %r8;\n"
    for k, type_ in enumerate(types):
        body += f"ld.param.u64 %d7, [p{k}]; mul.wide.u32 %d8, %r7, {bits_of(type_) // 8}; add.s64 %d8, %d7, %d8;\n"
        body += f"ld.global.{type_} {register(type_, k)}, [%d8];\n" if k else "mov.u64 %d6, %d8;\n"
    for k, type_ in enumerate(types):
        statement = statement.replace(f"${k}", register(type_, k))
    body += f"{statement}\nst.global.{result} [%d6], {register(result, 0)};"
    run, (out, *_) = execute(body, arrays, threads=THREADS, blocks=COUNT // THREADS)
    assert not run.findings
    return out


def assert_same(ours: np.ndarray, theirs: list[Any]) -> None:
    """Integers modulo the width; floats bit for bit, but any NaN for a NaN."""
    if ours.dtype.kind == "f":
        expected = np.array(theirs, ours.dtype)
        np.testing.assert_array_equal(ours, expected)
        np.testing.assert_array_equal(np.signbit(ours[ours == 0]), np.signbit(expected[ours == 0]))
    else:
        modulus = 1 << 8 * ours.itemsize
        assert [int(our) % modulus for our in ours] == [their % modulus for their in theirs]


def check(op: str, result: str, types: Sequence[str], reference: Reference) -> None:
    """``reference`` takes and returns Python numbers."""
    given = [(type_, inputs(type_, seed)) for seed, type_ in enumerate(types)]
    operands = ", ".join(f"${k}" for k in range(len(types) + 1))
    ours = computed(f"{op} {operands};", result, *given)
    columns = [values.tolist() for _, values in given]
    assert_same(ours, [reference(*row) for row in zip(*columns, strict=True)])


# -- integers --------------------------------------------------------------------------------------------------


def quotient(a: int, b: int) -> int:
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: int, b: int) -> int:
    return a if b == 0 else a - quotient(a, b) * b


def permuted(a: int, b: int, selector: int) -> int:
    source, result = (b << 32 | a).to_bytes(8, "little"), 0
    for k in range(4):
        nibble = selector >> 4 * k & 15
        byte = source[nibble & 7]
        result |= ((255 if byte > 127 else 0) if nibble & 8 else byte) << 8 * k
    return result


INTEGERS: list[tuple[str, str, tuple[str, ...], Reference]] = [
    ("mul.hi.s64", "s64", ("s64", "s64"), lambda a, b: a * b >> 64),
    ("mul.hi.u64", "u64", ("u64", "u64"), lambda a, b: a * b >> 64),
    ("div.s64", "s64", ("s64", "s64"), quotient),
    ("rem.s64", "s64", ("s64", "s64"), remainder),
    ("shl.b64", "u64", ("u64", "u32"), lambda a, n: a << min(n, 64)),
    ("shr.s64", "s64", ("s64", "u32"), lambda a, n: a >> n),
    ("shr.u16", "u16", ("u16", "u32"), lambda a, n: a >> n),
    ("prmt.b32", "u32", ("u32", "u32", "u32"), permuted),
    ("dp2a.lo.u32.u32", "u32", ("u32", "u32", "u32"),
     lambda a, b, c: c + (a & 0xFFFF) * (b & 0xFF) + (a >> 16) * (b >> 8 & 0xFF)),
]  # fmt: skip


@pytest.mark.parametrize(("op", "result", "types", "reference"), INTEGERS, ids=[row[0] for row in INTEGERS])
def test_integers(op: str, result: str, types: tuple[str, ...], reference: Reference) -> None:
    check(op, result, types, reference)


# -- floats ----------------------------------------------------------------------------------------------------


def rounded(exact: Fraction, dtype: Any) -> Any:
    """To nearest even, without the detour over another format."""
    try:
        near = dtype(float(exact))
    except OverflowError:
        return dtype(math.copysign(math.inf, exact))
    if not np.isfinite(near):
        return near
    candidates = [near, np.nextafter(near, dtype(-math.inf)), np.nextafter(near, dtype(math.inf))]
    finite = [value for value in candidates if np.isfinite(value)]
    odd = f"u{np.dtype(dtype).itemsize}"
    return min(finite, key=lambda v: (abs(Fraction(float(v)) - exact), int(np.asarray(v).view(odd)) & 1))


def fused(dtype: Any) -> Reference:
    def reference(a: float, b: float, c: float) -> Any:
        if not all(map(math.isfinite, (a, b, c))) or 0 in (a, b):
            return a * b + c
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        return rounded(exact, dtype) if exact else dtype(0)

    return reference


def smaller(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    return min((a, math.copysign(1, a)), (b, math.copysign(1, b)))[0]


def larger(a: float, b: float) -> float:
    return -smaller(-a, -b)


FLOATS: list[tuple[str, int, Reference]] = [
    ("fma.rn.f32", 3, fused(np.float32)),
    ("fma.rn.f64", 3, fused(np.float64)),
    ("min.f32", 2, smaller),
    ("max.f64", 2, larger),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("op", "count", "reference"), FLOATS, ids=[row[0] for row in FLOATS])
def test_floats(op: str, count: int, reference: Reference) -> None:
    type_ = op.rsplit(".", 1)[1]
    check(op, type_, [type_] * count, reference)


# -- conversions, comparisons, predicates ----------------------------------------------------------------------


def to_integer(rounding: Reference, type_: str, wide: bool) -> Reference:
    bits = bits_of(type_)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if type_[0] == "s" else (0, (1 << bits) - 1)

    def reference(x: float) -> int:
        if math.isnan(x):
            return 1 << bits - 1 if wide else 0
        return max(low, min(high, rounding(x) if math.isfinite(x) else high if x > 0 else low))

    return reference


CONVERSIONS: list[tuple[str, Reference]] = [
    ("cvt.rn.f32.s64", lambda n: rounded(Fraction(n), np.float32)),
    ("cvt.rn.f64.s64", float),
    ("cvt.rn.f64.u64", float),
    ("cvt.rn.f32.f64", np.float32),
    ("cvt.rzi.s32.f32", to_integer(math.trunc, "s32", wide=False)),
    ("cvt.rzi.u32.f32", to_integer(math.trunc, "u32", wide=False)),
    ("cvt.rzi.s32.f64", to_integer(math.trunc, "s32", wide=True)),
    ("cvt.rzi.s64.f64", to_integer(math.trunc, "s64", wide=True)),
    ("cvt.rni.s32.f64", to_integer(round, "s32", wide=True)),
    ("cvt.rni.s64.f64", to_integer(round, "s64", wide=True)),
    ("cvt.rmi.s32.f32", to_integer(math.floor, "s32", wide=False)),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("op", "reference"), CONVERSIONS, ids=[row[0] for row in CONVERSIONS])
def test_conversions(op: str, reference: Reference) -> None:
    to, source = op.split(".")[-2:]
    check(op, to, [source], reference)


COMPARISONS: dict[str, Reference] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge
}  # fmt: skip


@pytest.mark.parametrize("type_", ["s16", "u32", "s32", "u64", "s64", "f32", "f64"])
def test_comparisons(type_: str) -> None:
    """Bit k of the result is comparison k. Those of floats have a form that is true where a number is NaN; the others are
    false there, ne too.
    """
    given = (type_, inputs(type_, 0)), (type_, inputs(type_, 1))
    pairs = list(zip(given[0][1].tolist(), given[1][1].tolist(), strict=True))
    for suffix, with_nan in (("", False), *([("u", True)] if type_[0] == "f" else [])):
        code = "mov.u32 $0, 0;"
        for k, name in enumerate(COMPARISONS):
            code += f"setp.{name}{suffix}.{type_} %p2, $1, $2; selp.u32 %r6, {1 << k}, 0, %p2; or.b32 $0, $0, %r6;"
        wanted = [
            sum((with_nan if a != a or b != b else holds(a, b)) << k for k, holds in enumerate(COMPARISONS.values()))
            for a, b in pairs
        ]
        assert_same(computed(code, "u32", *given), wanted)


@pytest.mark.parametrize(("name", "reference"), [("add", sum), ("min", min), ("max", max)])
def test_atomics(name: str, reference: Reference) -> None:
    """One cell, all threads of a block; what `atom` returns is what was there before."""
    start, values = np.array([-5], np.int32), np.arange(-40, 88, dtype=np.int32)
    body = f"""
        ld.param.u64 %d1, [p0]; ld.param.u64 %d2, [p1]; ld.param.u64 %d3, [p2];
        mov.u32 %r1, %tid.x; mul.wide.u32 %d4, %r1, 4; add.s64 %d2, %d2, %d4; add.s64 %d3, %d3, %d4;
        ld.global.s32 %r2, [%d2]; atom.global.{name}.s32 %r3, [%d1], %r2; st.global.u32 [%d3], %r3;
    """
    run, (cell, _, old) = execute(body, [start, values, np.zeros(128, np.int32)], threads=128)
    assert not run.findings and cell[0] == reference([*start, *values])
    assert old[0] == -5 and [reference([o, v]) for o, v in zip(old, values, strict=True)] == [*old[1:], cell[0]]


# -- a library's code ------------------------------------------------------------------------------------------


def sines(angles: Any, out: Any) -> None:
    i = cuda.grid(1)
    if i < angles.size:
        out[i, 0], out[i, 1] = math.sin(angles[i]), math.cos(angles[i])


@pytest.mark.parametrize("exponents", [(-3, 0.8), (5.1, 22)], ids=["within a turn", "large"])
def test_sine_and_cosine_of_libdevice(exponents: tuple[float, float]) -> None:
    """Within a unit in the last place of the C library's. Large angles take its calls, .local and carries."""
    angles = 10.0 ** np.random.default_rng(3).uniform(*exponents, 1024)
    program = Program(compile_to_ptx(sines, (float64[::1], float64[:, ::1]), (128, 1), OLDEST))
    device = Memory()
    given = device.allocate("angles", angles.nbytes, content=angles.view(np.uint8), read_only=True)
    out = device.allocate("out", 2 * angles.nbytes)
    arguments = Array(given, (1024,), (8,), 8), Array(out, (1024, 2), (16, 8), 8)
    run = launch(program, device, (8,), (128,), arguments)
    assert not run.findings
    expected = np.array([(math.sin(angle), math.cos(angle)) for angle in angles])
    units = np.abs(device.bytes(out).view(np.float64).reshape(1024, 2) - expected) / np.spacing(np.abs(expected))
    assert units.max() <= 1
    took_helper = any(run.visits[site.block] for site in program.sites if "local" in site.instruction.opcode.modifiers)
    assert took_helper == (exponents[0] > 5)
