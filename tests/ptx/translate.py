"""A PTX module as LLVM IR that executes one thread.

The entry becomes

    int32 entry(int64 *context, int32 thread, int32 resume)

which runs from the start (resume 0) or from behind barrier number `resume` to the next barrier and returns that
one's number, or EXITED, or why the launch ends. A helper function returns 0 or why the launch ends.
"""

from dataclasses import dataclass, field
from typing import Any

from llvmlite import ir

from tests.ptx.accesses import MemoryAccess
from tests.ptx.emitter import I8, I32, I64, Emitter
from tests.ptx.opcodes import (
    HALF_TYPES,
    LLVM_TYPES,
    OPERATIONS,
    bits_of,
    emit_with_carry,
    operand_types,
    result_type,
    uses_carry,
)
from tests.ptx.parser import Constant, Function, Group, Instruction, Label, Module, PtxError, Symbol

START, EXITED, FAULT = 0, -1, -2
ENTRY_TYPE = ir.FunctionType(I32, [I64.as_pointer(), I32, I32])


RETURNS = ("ret", "exit")


@dataclass
class BasicBlock:
    """Instructions of which only the last may branch, return or wait at a barrier."""

    labels: list[str] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    # numbers of blocks; of a guarded branch the target first
    successors: list[int] = field(default_factory=list)


def basic_blocks(function: Function) -> list[BasicBlock]:
    """Raises ``PtxError`` for unknown labels and a guarded return or barrier."""
    blocks = _split(function)
    _connect(blocks)
    return blocks


def _split(function: Function) -> list[BasicBlock]:
    blocks = [BasicBlock()]
    for item in function.body:
        if isinstance(item, Label):
            if blocks[-1].instructions:
                blocks.append(BasicBlock())
            blocks[-1].labels.append(item.name)
            continue
        blocks[-1].instructions.append(item)
        if item.opcode.name in ("bra", "bar", *RETURNS):
            if item.guard and item.opcode.name != "bra":
                raise PtxError(f"line {item.line}: guarded {item.opcode.name}")
            blocks.append(BasicBlock())
    return blocks if blocks[-1].instructions else blocks[:-1]


def _connect(blocks: list[BasicBlock]) -> None:
    places = {label: number for number, block in enumerate(blocks) for label in block.labels}
    for number, block in enumerate(blocks):
        ins = block.instructions[-1]
        if ins.opcode.name == "bra":
            target = ins.operands[0]
            if not isinstance(target, Symbol) or target.name not in places:
                raise PtxError(f"line {ins.line}: {ins.text}: unknown label")
            block.successors.append(places[target.name])
        if ins.opcode.name not in RETURNS and not (ins.opcode.name == "bra" and ins.guard is None):
            block.successors.append(number + 1)
        if max(block.successors, default=0) == len(blocks):
            raise PtxError(f"line {ins.line}: {ins.text}: the function ends without a return")


class Translation:
    """The IR of a module, and what a launch must know about it. Raises ``PtxError``."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.ir = ir.Module()
        self.sites: list[Instruction] = []
        self.barriers: list[int] = []  # sites; that of barrier number 1 first
        self.frame_size = self.local_size = 0
        self.symbols = {variable.name: number for number, variable in enumerate(module.variables)}
        self.helpers = {name: self._declare(function) for name, function in module.functions.items()}
        for name, function in module.functions.items():
            _FunctionTranslator(self, function, self.helpers[name]).translate()
        entry = ir.Function(self.ir, ENTRY_TYPE, "entry")
        _FunctionTranslator(self, module.entry, entry).translate()

    def _declare(self, function: Function) -> Any:
        """Context, thread, then host addresses of returned values and parameters."""
        addresses = [I64] * (len(function.returned) + len(function.parameters))
        signature = ir.FunctionType(I32, [I64.as_pointer(), I32, *addresses])
        return ir.Function(self.ir, signature, function.name)


class _FunctionTranslator:
    def __init__(self, program: Translation, function: Function, target: Any) -> None:
        self.program, self.function = program, function
        self.is_entry = function is program.module.entry
        self.blocks = basic_blocks(function)
        self.e = Emitter(target, program.symbols, program.frame_size)
        self.parameters = self._place_parameters()
        self._place_local_variables()
        self.memory = MemoryAccess(self.e, self.parameters, self._returning(FAULT))
        self.starts = [self.e.new_block(f"block{number}") for number in range(len(self.blocks))]
        self.resumes: list[Any] = []  # LLVM blocks behind the barriers

    def translate(self) -> None:
        for number, block in enumerate(self.blocks):
            self._translate_block(number, block)
        if self.is_entry:
            switch = self.e.prologue.switch(self.e.target.args[2], self.starts[0])
            for number, resume in enumerate(self.resumes, 1):
                switch.add_case(I32(number), resume)
        else:
            self.e.prologue.branch(self.starts[0])
        self.program.frame_size = self.e.frame_end

    def _place_parameters(self) -> dict[str, Any]:
        function, e = self.function, self.e
        if self.is_entry:
            own = {p.name: e.item_address("parameters", k) for k, p in enumerate(function.parameters)}
        else:
            names = [variable.name for variable in (*function.returned, *function.parameters)]
            own = dict(zip(names, e.target.args[2:], strict=True))
        for variable in function.call_parameters:
            room = e.b.alloca(I8, variable.size)
            room.align = 8
            own[variable.name] = e.b.ptrtoint(room, I64)
        return own

    def _place_local_variables(self) -> None:
        for variable in self.function.local_variables:
            start = -(-self.program.local_size // variable.align) * variable.align
            self.e.local_addresses[variable.name] = self.e.b.add(self.e.local, I64(start))
            self.program.local_size = start + variable.size

    def _returning(self, status: int) -> Any:
        block = self.e.new_block("return")
        ir.IRBuilder(block).ret(I32(status))
        return block

    # -- control flow ------------------------------------------------------------------------------------------

    def _translate_block(self, number: int, block: BasicBlock) -> None:
        self.e.go_on_in(self.starts[number])
        for ins in block.instructions:
            self.e.site = len(self.program.sites)
            self.program.sites.append(ins)
            try:
                self._translate_instruction(ins, block)
            except (PtxError, KeyError, ValueError, TypeError) as error:
                raise PtxError(f"line {ins.line}: {ins.text}: {error}") from error
        if not self.e.b.block.is_terminated:
            self.e.b.branch(self.starts[block.successors[0]])

    def _translate_instruction(self, ins: Instruction, block: BasicBlock) -> None:
        if ins.opcode.name == "bra":
            self._branch(ins, block)
        elif ins.opcode.name in RETURNS:
            self.e.b.ret(I32(EXITED if self.is_entry else 0))
        elif ins.opcode.name == "bar":
            self._barrier(ins, block)
        elif ins.guard:
            predicate = self.e.value(ins.guard.predicate, "pred")
            skip, going_on = self.e.new_block("guarded"), self.e.new_block("going_on")
            self.e.b.cbranch(predicate, *((skip, going_on) if ins.guard.wanted else (going_on, skip)))
            self.e.go_on_in(skip)
            self._execute(ins)
            self.e.b.branch(going_on)
            self.e.go_on_in(going_on)
        else:
            self._execute(ins)

    def _branch(self, ins: Instruction, block: BasicBlock) -> None:
        targets = [self.starts[successor] for successor in block.successors]
        if ins.guard is None:
            self.e.b.branch(targets[0])
        else:
            predicate = self.e.value(ins.guard.predicate, "pred")
            self.e.b.cbranch(predicate, *(targets if ins.guard.wanted else targets[::-1]))

    def _barrier(self, ins: Instruction, block: BasicBlock) -> None:
        """Returns; ``resume`` leads to the next block."""
        if ins.opcode.modifiers != ("sync",) or ins.operands != (Constant(0),) or not self.is_entry:
            raise PtxError("only bar.sync 0 in the entry is implemented")
        (successor,) = block.successors
        self.program.barriers.append(self.e.site)
        self.e.b.ret(I32(len(self.program.barriers)))
        self.resumes.append(self.starts[successor])

    # -- instructions ------------------------------------------------------------------------------------------

    def _execute(self, ins: Instruction) -> None:
        op = ins.opcode
        if op.name == "ld":
            self.memory.load(ins)
        elif op.name == "st":
            self.memory.store(ins)
        elif op.name in ("atom", "red"):
            self.memory.update(ins)
        elif op.name == "call":
            self._call(ins)
        elif op.name == "mov" and any(isinstance(operand, Group) for operand in ins.operands):
            self._pack(ins)
        elif uses_carry(op):
            self._compute_with_carry(ins)
        else:
            self._compute(ins)

    def _compute(self, ins: Instruction) -> None:
        op = ins.opcode
        values = [self.e.value(o, t) for o, t in zip(ins.operands[1:], operand_types(op), strict=True)]
        self.e.assign(ins.operands[0], OPERATIONS[op.name].emit(self.e.b, op, values), result_type(op))

    def _compute_with_carry(self, ins: Instruction) -> None:
        values = [self.e.value(operand, "u32") for operand in ins.operands[1:]]
        result, carry = emit_with_carry(self.e.b, ins.opcode, values, self.e.b.load(self.e.carry))
        self.e.assign(ins.operands[0], result, "u32")
        if "cc" in ins.opcode.modifiers:
            self.e.b.store(carry, self.e.carry)

    def _pack(self, ins: Instruction) -> None:
        """mov between a register and two of half its width."""
        (type_,) = ins.opcode.types
        half = HALF_TYPES[type_]
        target, source = ins.operands
        b, shift = self.e.b, LLVM_TYPES[type_](bits_of(half))
        if isinstance(target, Group):
            value = self.e.value(source, type_)
            for register, bits in zip(target.members, (value, b.lshr(value, shift)), strict=True):
                self.e.assign(register, b.trunc(bits, LLVM_TYPES[half]), half)
        elif isinstance(source, Group):
            low, high = (b.zext(self.e.value(member, half), LLVM_TYPES[type_]) for member in source.members)
            self.e.assign(target, b.or_(low, b.shl(high, shift)), type_)

    def _call(self, ins: Instruction) -> None:
        *returned, callee, given = ins.operands
        if not isinstance(callee, Symbol):
            raise PtxError("indirect call")
        groups = [group for group in (*returned, given) if isinstance(group, Group)]
        names = [member.name for group in groups for member in group.members if isinstance(member, Symbol)]
        arguments = [*self.e.target.args[:2], *(self.parameters[name] for name in names)]
        self.memory.leave_on_fault(self.e.b.call(self.program.helpers[callee.name], arguments))
