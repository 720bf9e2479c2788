"""Basic blocks of a function, and the registers whose values later blocks read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.ptx.parser import Address, Function, Group, Instruction, Label, Operand, PtxError, Register, Symbol

RETURNS = ("ret", "exit")
NO_RESULT = ("st", "red", "bra", "bar", "call", *RETURNS)  # the first operand is read, if there is one


@dataclass
class BasicBlock:
    """Instructions of which only the last may branch, return or wait at a barrier."""

    labels: list[str] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    # numbers of blocks; of a guarded branch the target first
    successors: list[int] = field(default_factory=list)
    live_in: set[Register] = field(default_factory=set)

    @property
    def last(self) -> str:
        """Name of the last instruction."""
        return self.instructions[-1].opcode.name if self.instructions else ""


def basic_blocks(function: Function) -> list[BasicBlock]:
    """Raises ``PtxError`` for unknown labels, a guarded return or barrier, a register read before any write."""
    blocks = _split(function)
    _connect(blocks)
    _find_live_registers(blocks)
    if blocks[0].live_in:
        raise PtxError(f"{function.name}: {sorted(blocks[0].live_in)[:3]} may be read before they are written")
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


def _within(operand: Operand) -> Iterator[Register]:
    if isinstance(operand, Register):
        yield operand
    elif isinstance(operand, Address):
        yield from _within(operand.base)
    elif isinstance(operand, Group):
        for member in operand.members:
            yield from _within(member)


def registers_read(ins: Instruction) -> set[Register]:
    sources = ins.operands if ins.opcode.name in NO_RESULT else ins.operands[1:]
    guard = {ins.guard.predicate} if ins.guard else set()
    return guard.union(*(_within(operand) for operand in sources))


def registers_written(ins: Instruction) -> set[Register]:
    return set() if ins.opcode.name in NO_RESULT else set(_within(ins.operands[0]))


def _find_live_registers(blocks: list[BasicBlock]) -> None:
    """Backwards data flow: live before a block is what it reads first and what it leaves alone but others read."""
    needs: list[set[Register]] = []
    replaces: list[set[Register]] = []
    for block in blocks:
        need: set[Register] = set()
        replace: set[Register] = set()
        for ins in block.instructions:
            need |= registers_read(ins) - replace
            if ins.guard is None:  # a guarded write may leave the old value
                replace |= registers_written(ins)
        needs.append(need)
        replaces.append(replace)
        block.live_in = set(need)
    changed = True
    while changed:
        changed = False
        for number in reversed(range(len(blocks))):
            block = blocks[number]
            after = set[Register]().union(*(blocks[s].live_in for s in block.successors))
            before = needs[number] | (after - replaces[number])
            if before != block.live_in:
                block.live_in, changed = before, True
