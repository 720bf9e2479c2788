"""Everything that a kernel must not do is found, and its nearest harmless neighbour is not."""

import numpy as np
import pytest

from tests.ptx import memory
from tests.ptx.launch import DIVERGENT_BARRIER, Finding, launch
from tests.ptx.memory import Memory
from tests.ptx.parser import PtxError
from tests.ptx.program import Program

KERNEL = """
.version 8.0
.target sm_70
.address_size 64
.shared .align 4 .b8 room[256];
.visible .entry snippet(.param .u64 p0)
{{
    .reg .pred %p<9>;
    .reg .b16 %h<9>;
    .reg .b32 %r<9>;
    .reg .b64 %d<9>;
    .reg .f32 %f<9>;
    ld.param.u64 %d1, [p0];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %d2, %r1, 4;
    add.s64 %d3, %d1, %d2;
    setp.lt.u32 %p1, %r1, 20;
{body}
    ret;
}}
"""  # %r1 thread, %d3 its cell of 64, %p1 one of the first 20
SHARED = "mov.u64 %d4, room; add.s64 %d5, %d4, %d2; st.shared.u32 [%d5], %r1;"  # %d5: its cell of `room`
OWN, NEXT = "st.global.u32 [%d3], %r1;", "@%p1 ld.global.u32 %r2, [%d3+4];"


def executed(body: str, blocks: int = 1, uninitialised: bool = False, read_only: bool = False) -> list[Finding]:
    """Findings where 64 threads a block execute the statements."""
    device = Memory()
    cells = device.allocate(
        "cells", 256, content=None if uninitialised else np.zeros(256, np.uint8), read_only=read_only
    )
    return launch(Program(KERNEL.format(body=body)), device, (blocks,), (64,), [cells.address])


def problems(body: str, **options: object) -> set[str]:
    return {finding.problem for finding in executed(body, **options)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("problem", "wrong", "right"),
    [
        (memory.OUT_OF_BOUNDS, "st.global.u32 [%d3+4], %r1;", OWN),
        (memory.OUT_OF_BOUNDS, "ld.global.u32 %r2, [%d1+256];", "ld.global.u32 %r2, [%d1+252];"),
        (memory.OUT_OF_BOUNDS, "ld.global.v2.u32 {%r2, %r3}, [%d1+256];", "ld.global.v2.u32 {%r2, %r3}, [%d1+248];"),
        (memory.OUT_OF_BOUNDS, "ld.shared.u32 %r2, [%d1];", "ld.u32 %r2, [%d1];"),  # of global memory
        (memory.OUT_OF_BOUNDS, "mov.u64 %d4, 64; ld.global.u32 %r2, [%d4];", "ld.global.u32 %r2, [%d1];"),
        (memory.MISALIGNED, "ld.global.u32 %r2, [%d1+2];", "ld.global.u16 %h2, [%d1+2];"),
        (memory.MISALIGNED, "ld.global.v2.u32 {%r2, %r3}, [%d1+4];", "ld.global.v2.u32 {%r2, %r3}, [%d1+8];"),
        (memory.RACE, "st.global.u32 [%d1], %r1;", OWN),
        (memory.RACE, f"{OWN} {NEXT}", f"{OWN} bar.sync 0; {NEXT}"),
        (memory.RACE, f"{NEXT} {OWN}", f"{NEXT} bar.sync 0; {OWN}"),
        (memory.RACE, "ld.global.u32 %r2, [%d1]; st.global.u32 [%d1], %r1;", "ld.global.u32 %r2, [%d1];"),
        (memory.RACE, "st.global.u8 [%d3], %r1; @%p1 ld.global.u32 %r2, [%d3+4];", "st.global.u8 [%d3], %r1;"),
        (memory.RACE, "atom.global.add.u32 %r2, [%d1], 1; ld.global.u32 %r3, [%d1];", "red.global.add.u32 [%d1], 1;"),
        (memory.NOT_CONSTANT, "ld.global.nc.u32 %r2, [%d3];", "ld.global.u32 %r2, [%d3];"),
    ],
)  # fmt: skip
def test_accesses_to_global_memory(problem, wrong, right):
    assert problems(wrong) == {memory.PROBLEMS[problem]}
    assert problems(right) == set()


READ_NEXT = "@%p1 ld.shared.u32 %r2, [%d5+4];"
READ_FIRST = "ld.shared.u32 %r2, [room];"


@pytest.mark.parametrize(
    ("found", "wrong", "right"),
    [
        ({memory.RACE, memory.UNINITIALISED}, f"{SHARED} {READ_NEXT}", f"{SHARED} bar.sync 0; {READ_NEXT}"),
        ({memory.UNINITIALISED}, f"@%p1 bra A; {SHARED} A: bar.sync 0; {READ_FIRST}", f"{SHARED} bar.sync 0; {READ_FIRST}"),
        ({memory.OUT_OF_BOUNDS}, f"{SHARED} st.shared.u32 [room+256], %r1;", SHARED),
    ],
)  # fmt: skip
def test_accesses_to_shared_memory(found, wrong, right):
    for blocks in (1, 3):  # each block finds shared memory uninitialised, as it is on a GPU
        assert problems(wrong, blocks=blocks) == {memory.PROBLEMS[number] for number in found}
        assert problems(right, blocks=blocks) == set()


def test_memory_that_nothing_wrote():
    assert problems("ld.global.u32 %r2, [%d3];", uninitialised=True) == {"uninitialised read"}
    assert problems(f"{OWN} ld.global.u32 %r2, [%d3];", uninitialised=True) == set()
    assert problems("st.global.u8 [%d3], %r1; ld.global.u32 %r2, [%d3];", uninitialised=True) == {"uninitialised read"}


def test_memory_that_may_not_be_written():
    assert problems(OWN, read_only=True) == {"write to read-only memory"}
    assert problems("ld.global.nc.u32 %r2, [%d3];", read_only=True) == set()


def test_blocks_are_never_ordered():
    """Not even by barriers: that would need another launch."""
    for first in ("ld.global.u32 %r2, [%d3];", OWN):
        assert problems(f"{first} bar.sync 0;", blocks=2) == (set() if first != OWN else {"race"})
    mine = "mov.u32 %r3, %ctaid.x; setp.eq.u32 %p2, %r3, BLOCK; @%p2 st.global.u32 [%d3], %r1; bar.sync 0;"
    for block in "02":
        body = f"{mine.replace('BLOCK', block)} setp.eq.u32 %p3, %r3, 1; @%p3 ld.global.u32 %r2, [%d3];"
        assert problems(body, blocks=3) == {"race"}
    assert problems("red.global.add.u32 [%d3], 1;", blocks=2) == set()


@pytest.mark.parametrize(
    "body",
    [
        "@%p1 bra A; bar.sync 0; bra.uni B; A: bar.sync 0; B:",  # at two barriers
        "@%p1 bra A; bar.sync 0; A:",  # some have exited
    ],
)
def test_barriers_that_not_all_threads_reach(body):
    assert problems(body) == {DIVERGENT_BARRIER}
    assert problems("@%p1 bra A; A: bar.sync 0;") == set()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("vadd4.u32.u32.u32 %r2, %r1, %r1, %r1;", "not implemented"),
        ("ld.volatile.global.u32 %r2, [%d1];", "not implemented"),
        ("add.f32 %f1, %f2, %f3;", "contract"),
        ("mul.ftz.rn.f32 %f1, %f2, %f3;", "not implemented"),
        ("mov.u32 %r2, %clock;", "not declared"),
        ("add.u32 %h2, %r1, %r1;", "u32 into"),
        ("add.u64 %d3, %r1, %d1;", "as u64"),
        ("@%p1 bra NOWHERE;", "unknown label"),
        ("@%p1 bar.sync 0;", "guarded"),
        ("bar.sync 1;", "bar.sync 0"),
        ("atom.global.cas.b32 %r2, [%d1], %r1, %r1;", "too many|not implemented"),
    ],
)
def test_what_is_not_understood_is_refused(statement, message):
    filled = "mov.f32 %f2, 0f00000000; mov.f32 %f3, %f2;"
    with pytest.raises(PtxError, match=message):
        Program(KERNEL.format(body=f"{filled} {statement}"))
