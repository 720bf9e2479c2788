"""PTX text is read as it is written: declarations, scopes, operands, calls, line numbers."""

import numpy as np
import pytest

from tests.ptx.blocks import basic_blocks
from tests.ptx.parser import (
    Address,
    Constant,
    Group,
    Guard,
    Instruction,
    Label,
    Opcode,
    PtxError,
    Register,
    Special,
    Symbol,
    parse_module,
)

MODULE = """//
.version 8.8
.target sm_70
.address_size 64
.func (.param .align 8 .b8 result[16]) helper
(
    .param .b64 angle
)
;
.visible .shared .align 4 .b8 room[60];
.common .global .align 8 .u64 environment;
.const .align 4 .b8 table[8] = {1, 2, 0, 255};

.visible .entry kernel(
    .param .u64 first,
    .param .u64 second
)
.maxntid 384, 1, 1
{
    .reg .pred %p<2>;
    .reg .b32 %r<3>; // a comment; with a semicolon {
    .reg .b64 %d<3>;
    ld.param.u64 %d1, [second];
    mov.u32 %r1, %tid.x;
$L_1:
    .pragma "nounroll";
    @!%p1 bra $L_1;
    ld.global.v2.u32 {%r1, %r2}, [%d1+-8];
    {
    .reg .b32 %r1;
    .param .b64 angle0;
    .param .align 8 .b8 result0[16];
    mov.b32 %r1, -0x10;
    call.uni (result0),
    helper,
    (
    angle0
    );
    }
    mov.f32 %r1, 0f3F800000; mov.u64 %d2, room;
    ret;
}
.func (.param .align 8 .b8 result[16]) helper(
    .param .b64 angle
)
{
    .local .align 8 .b8 depot[40];
    ret;
}
"""


def instruction(text: str) -> Instruction:
    """The one that begins so."""
    body = parse_module(MODULE).entry.body
    (found,) = (item for item in body if isinstance(item, Instruction) and item.text.startswith(text))
    return found


def test_variables_have_space_size_alignment_and_content() -> None:
    room, environment, table = parse_module(MODULE).variables
    assert (room.space, room.name, room.size, room.align, room.content) == ("shared", "room", 60, 4, None)
    assert (environment.space, environment.size, environment.align) == ("global", 8, 8)
    np.testing.assert_array_equal(environment.content, np.zeros(8))
    np.testing.assert_array_equal(table.content, [1, 2, 0, 255, 0, 0, 0, 0])


def test_functions_have_parameters_and_local_variables() -> None:
    module = parse_module(MODULE)
    assert [p.name for p in module.entry.parameters] == ["first", "second"]
    helper = module.functions["helper"]
    assert [p.name for p in helper.parameters] == ["angle"] and [r.size for r in helper.returned] == [16]
    assert [v.size for v in helper.local_variables] == [40]


def test_operands() -> None:
    d1, r1 = Register("%d1", "b64"), Register("%r1", "b32")
    assert instruction("ld.param").operands == (d1, Address(Symbol("second"), 0))
    assert instruction("mov.u32").operands == (r1, Special("tid.x"))
    load = instruction("ld.global")
    assert load.opcode == Opcode("ld", ("global", "v2"), ("u32",))
    assert load.operands == (Group((r1, Register("%r2", "b32"))), Address(d1, -8))
    assert instruction("mov.f32").operands == (r1, Constant(0x3F800000))
    assert instruction("mov.u64").operands[1] == Symbol("room")
    branch = instruction("@!%p1")
    assert branch.guard == Guard(Register("%p1", "pred"), False) and branch.operands == (Symbol("$L_1"),)
    assert Opcode.parse("cvt.rzi.s32.f64") == Opcode("cvt", ("rzi",), ("s32", "f64"))


def test_an_inner_scope_has_registers_and_parameters_of_its_own() -> None:
    inner, outer = instruction("mov.b32").operands, instruction("mov.f32").operands
    assert inner[0] != outer[0] and inner[1] == Constant(-16)
    returned, callee, given = instruction("call").operands
    passed = {variable.name: variable.size for variable in parse_module(MODULE).entry.call_parameters}
    assert callee == Symbol("helper")
    assert [passed[group.members[0].name] for group in (given, returned)] == [8, 16]  # type: ignore[union-attr]


def test_line_numbers_are_those_of_the_text() -> None:
    lines = MODULE.split("\n")
    for item in parse_module(MODULE).entry.body:
        if isinstance(item, Instruction):
            assert item.text.split()[0] in lines[item.line - 1]


def test_basic_blocks_end_at_branches_and_begin_at_labels() -> None:
    function = parse_module(MODULE).entry
    function.body = [item for item in function.body if isinstance(item, Label) or item.opcode.name != "call"]
    function.body[2:2] = [
        Instruction(Opcode("mov", (), ("pred",)), (Register("%p1", "pred"), Constant(1)), None, 0, "")
    ]
    first, loop, rest = basic_blocks(function)
    assert (first.successors, loop.successors, rest.successors) == ([1], [1, 2], [])
    assert loop.live_in == {Register("%d1", "b64"), Register("%p1", "pred")}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mov.u32 %r1, %tid.x;", "mov.u32 %r9, %tid.x;", "%r9 is not declared"),
        (".visible .entry", ".visible .func", "no entry"),
        (".const .align 4 .b8", ".texture", "declaration"),
        ("    ret;\n}\n.func", "    ret }\n.func", "line"),
    ],
)
def test_malformed_text_is_refused(old: str, new: str, message: str) -> None:
    assert old in MODULE
    with pytest.raises(PtxError, match=message):
        parse_module(MODULE.replace(old, new, 1))
