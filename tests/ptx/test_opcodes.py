"""Instructions in the cases where processors differ: what the PTX ISA says. `test_kernels` executes them, and all others."""

from __future__ import annotations

import math
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

REGISTERS = {"b16": "%h", "b32": "%r", "b64": "%d", "f32": "%f", "f64": "%g"}
NAN, HIGH, ONES = math.nan, 1 << 63, (1 << 64) - 1


def register(type_: str, number: int) -> str:
    kind = type_ if type_[0] == "f" else f"b{max(bits_of(type_), 16)}"
    return f"{REGISTERS[kind]}{number}"


def computed(statement: str, types: tuple[str, ...], operands: tuple[float, ...]) -> Any:
    """The statement's result $0 of operands $1, $2, ...; types: of the result and of each operand."""
    numpy_types = [np.dtype(f"{ {'s': 'i', 'f': 'f'}.get(t[0], 'u') }{bits_of(t) // 8}") for t in types]
    arrays = [np.array([value]).astype(dtype) for value, dtype in zip((0, *operands), numpy_types, strict=True)]
    body = "ld.param.u64 %d6, [p0];\n"
    for k, type_ in enumerate(types[1:], 1):
        body += f"ld.param.u64 %d7, [p{k}]; ld.global.{type_} {register(type_, k)}, [%d7];\n"
    for k, type_ in enumerate(types):
        statement = statement.replace(f"${k}", register(type_, k))
    run, (out, *_) = execute(
        f"{body}{statement}\nst.global.{types[0]} [%d6], {register(types[0], 0)};", arrays, threads=1
    )
    assert not run.findings
    return out[0]


CASES: list[tuple[str, str, tuple[float, ...], float]] = [
    # past the width
    ("shl.b64", "u64 u64 u32", (1, 64), 0), ("shl.b32", "u32 u32 u32", (1, 32), 0), ("shr.u64", "u64 u64 u32", (ONES, 64), 0),
    ("shr.s64", "s64 s64 u32", (-8, 70), -1), ("shr.u16", "u16 u16 u32", (65535, 16), 0),
    # by zero, towards zero, of the lowest number
    ("div.s64", "s64 s64 s64", (7, 0), -1), ("div.s64", "s64 s64 s64", (-7, 2), -3),
    ("div.s64", "s64 s64 s64", (-HIGH, -1), -HIGH),
    ("div.u32", "u32 u32 u32", (7, 0), 2**32 - 1), ("rem.s64", "s64 s64 s64", (-7, 2), -1), ("rem.s64", "s64 s64 s64", (7, 0), 7),
    # parts of products
    ("mul.hi.s64", "s64 s64 s64", (-HIGH, -HIGH), 1 << 62), ("mul.hi.u64", "u64 u64 u64", (ONES, ONES), ONES - 1),
    ("mul.wide.s32", "s64 s32 s32", (-3, 1 << 30), -3 << 30),
    ("dp2a.lo.u32.u32", "u32 u32 u32 u32", (3 << 16 | 2, 7 << 8 | 5, 1), 2 * 5 + 3 * 7 + 1),
    # bits
    ("clz.b64", "u32 u64", (0,), 64), ("clz.b64", "u32 u64", (1,), 63), ("clz.b32", "u32 u32", (0,), 32),
    ("prmt.b32", "u32 u32 u32 u32", (0x03020100, 0x07060504, 0x7531), 0x07050301),
    ("prmt.b32", "u32 u32 u32 u32", (0x80, 0, 0x0008), 0x808080FF),  # the sign of byte 0, then that byte
    # a NaN gives way, -0 < +0
    ("min.f32", "f32 f32 f32", (NAN, 1), 1), ("min.f32", "f32 f32 f32", (0.0, -0.0), -0.0),
    ("max.f64", "f64 f64 f64", (-0.0, 0.0), 0.0),
    # rounded once
    ("fma.rn.f32", "f32 f32 f32 f32", (1 + 2**-12, 1 + 2**-12, -(1 + 2**-11)), 2**-24),
    ("fma.rn.f64", "f64 f64 f64 f64", (1 + 2**-30, 1 + 2**-30, -(1 + 2**-29)), 2**-60),
    ("cvt.rn.f32.s64", "f32 s64", (2**62 + 2**38 + 1,), 2**62 + 2**39), ("cvt.rn.f64.u64", "f64 u64", (ONES,), 2.0**64),
    ("cvt.rn.f32.f64", "f32 f64", (1 + 2**-24 + 2**-50,), 1 + 2**-23),
    # out of range, NaN, halves
    ("cvt.rzi.s32.f32", "s32 f32", (3e9,), 2**31 - 1), ("cvt.rzi.s32.f32", "s32 f32", (NAN,), 0),
    ("cvt.rzi.s32.f32", "s32 f32", (-1.5,), -1), ("cvt.rzi.u32.f32", "u32 f32", (-1.0,), 0),
    ("cvt.rzi.u32.f32", "u32 f32", (5e9,), 2**32 - 1), ("cvt.rzi.s32.f64", "s32 f64", (NAN,), -(2**31)),
    ("cvt.rzi.s64.f64", "s64 f64", (-1e19,), -HIGH), ("cvt.rni.s32.f64", "s32 f64", (2.5,), 2),
    ("cvt.rni.s64.f64", "s64 f64", (-3.5,), -4), ("cvt.rmi.s32.f32", "s32 f32", (-0.5,), -1),
    ("cvt.rmi.f64.f64", "f64 f64", (-0.5,), -1), ("cvt.rpi.f64.f64", "f64 f64", (0.5,), 1),
]  # fmt: skip


@pytest.mark.parametrize(("op", "types", "operands", "result"), CASES)
def test_edge_cases(op, types, operands, result):
    names = ", ".join(f"${k}" for k in range(len(operands) + 1))
    found = computed(f"{op} {names};", tuple(types.split()), operands)
    assert found == result and np.signbit(found) == np.signbit(np.float64(result))


@pytest.mark.parametrize(
    ("comparison", "operands", "holds"),
    [
        ("ne.f32", (NAN, 1), 0), ("neu.f32", (NAN, 1), 1), ("lt.f64", (NAN, 1), 0), ("ltu.f64", (NAN, 1), 1),
        ("eq.f32", (0.0, -0.0), 1), ("lt.s32", (-1, 0), 1), ("lt.u32", (2**32 - 1, 0), 0), ("ge.s64", (-HIGH, 0), 0),
    ],
)  # fmt: skip
def test_comparisons(comparison, operands, holds):
    """Those of floats are false where a number is NaN, ne too; the forms that end in u are true there."""
    type_ = comparison.split(".")[1]
    code = f"setp.{comparison} %p2, $1, $2; selp.u32 $0, 1, 0, %p2;"
    assert computed(code, ("u32", type_, type_), operands) == holds


@pytest.mark.parametrize(("name", "reference"), [("add", sum), ("min", min), ("max", max)])
def test_atomics(name, reference):
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
def test_sine_and_cosine_of_libdevice(exponents):
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
