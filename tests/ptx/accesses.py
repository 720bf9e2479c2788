"""Instructions that read and write memory. Device memory is reached through ``memory.check_access`` alone."""

from typing import Any

from llvmlite import ir

from tests.ptx import memory
from tests.ptx.emitter import I32, I64, Emitter
from tests.ptx.opcodes import LLVM_TYPES, OPERATIONS, bits_of, is_float
from tests.ptx.parser import Address, Group, Instruction, Operand, PtxError, Symbol

CHECK_TYPE = ir.FunctionType(I32, [I64, I64, I64, I64, I32, I32, I32, I32, I32, I32])


class MemoryAccess:
    """Translates loads, stores and atomics for one function.

    parameters: host addresses of the function's parameters and of those that it passes on.
    fault_exit: the LLVM block that ends the launch.
    """

    def __init__(self, emitter: Emitter, parameters: dict[str, Any], fault_exit: Any) -> None:
        self.e, self.parameters, self.fault_exit = emitter, parameters, fault_exit

    def load(self, ins: Instruction) -> None:
        target, address = ins.operands
        (type_,) = ins.opcode.types
        kind = memory.CONSTANT_LOAD if "nc" in ins.opcode.modifiers else memory.LOAD
        registers, pointer = self._vector(ins, target, address, kind)
        for k, register in enumerate(registers):
            self.e.assign(register, self.e.b.load(self.e.b.gep(pointer, [I32(k)])), type_)

    def store(self, ins: Instruction) -> None:
        address, source = ins.operands
        (type_,) = ins.opcode.types
        registers, pointer = self._vector(ins, source, address, memory.STORE)
        for k, register in enumerate(registers):
            self.e.b.store(self.e.value(register, type_), self.e.b.gep(pointer, [I32(k)]))

    def update(self, ins: Instruction) -> None:
        """atom, red. Threads run one after the other: a load, an operation and a store."""
        *target, address, operand = ins.operands
        (space, operation), (type_,) = ins.opcode.modifiers, ins.opcode.types
        if operation not in ("add", "min", "max") or is_float(type_):
            raise PtxError("not implemented")
        pointer = self._checked(address, type_, memory.SPACES[space], bits_of(type_) // 8, memory.UPDATE)
        old = self.e.b.load(pointer)
        op = ins.opcode._replace(name=operation, modifiers=())
        new = OPERATIONS[operation].emit(self.e.b, op, [old, self.e.value(operand, type_)])
        self.e.b.store(new, pointer)
        for register in target:
            self.e.assign(register, old, type_)

    def leave_on_fault(self, status: Any) -> None:
        """Goes on where the status is 0."""
        going_on = self.e.new_block("going_on")
        self.e.b.cbranch(self.e.b.icmp_unsigned("==", status, I32(0)), going_on, self.fault_exit)
        self.e.go_on_in(going_on)

    def _vector(self, ins: Instruction, value: Operand, address: Operand, kind: int) -> tuple[tuple[Operand, ...], Any]:
        """The registers of one access, and a host pointer to the first one's item."""
        members = value.members if isinstance(value, Group) else (value,)
        modifiers, (type_,) = ins.opcode.modifiers, ins.opcode.types
        if modifiers == ("param",):
            return members, self._parameter(address, type_)
        size = bits_of(type_) // 8 * len(members)
        return members, self._checked(address, type_, _space(modifiers, kind), size, kind)

    def _parameter(self, address: Operand, type_: str) -> Any:
        if not isinstance(address, Address) or not isinstance(address.base, Symbol):
            raise PtxError("address of a parameter")
        place = self.e.b.add(self.parameters[address.base.name], I64(address.offset))
        return self.e.host_pointer(place, LLVM_TYPES[type_])

    def _checked(self, address: Operand, type_: str, space: int, size: int, kind: int) -> Any:
        """Host pointer to an item, behind the check of `size` bytes there."""
        if not isinstance(address, Address):
            raise PtxError("address")
        e = self.e
        where = e.b.add(e.value(address.base, "u64"), I64(address.offset))
        shared = [e.values["records"], e.values["log"], e.values["end"], where]
        constants = [I32(number) for number in (size, kind, space, e.site)]
        check = e.b.inttoptr(I64(memory.check_access.address), CHECK_TYPE.as_pointer())
        self.leave_on_fault(e.b.call(check, [*shared, *constants, e.tag, e.first_interval]))
        return e.host_pointer(e.b.add(where, e.values["data"]), LLVM_TYPES[type_])


def _space(modifiers: tuple[str, ...], kind: int) -> int:
    """Without a space the address is generic: of global memory, since no kernel makes others generic."""
    space = next((modifier for modifier in modifiers if modifier in memory.SPACES), "global")
    known = {space, "v2", "v4"} | ({"nc"} if kind == memory.CONSTANT_LOAD and space == "global" else set())
    if not set(modifiers) <= known or (kind == memory.STORE and space == "const"):
        raise PtxError("not implemented")
    return memory.SPACES[space]
