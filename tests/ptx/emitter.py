"""Values of the thread that a translated function executes: registers, operands, and what the launch shares.

The registers of a thread lie in its frame, in which every function has places of its own. `context` is an array of int64
(CONTEXT); host addresses in it are numbers.
"""

from typing import Any

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder

from tests.ptx import memory
from tests.ptx.opcodes import LLVM_TYPES, bits_of, is_float
from tests.ptx.parser import Constant, Operand, PtxError, Register, Special, Symbol

CONTEXT = (
    "data",  # host address of device address 0
    "records",  # host address
    "end",  # of the memory: an offset
    "log",  # host address
    "parameters",  # host address, eight bytes each
    "symbols",  # host address of the device addresses of module variables
    "frames",  # host address
    "frame_size",
    "local",  # device address of thread 0's local memory
    "local_stride",
    "first_interval",  # of the block
    "interval",
    *(f"{name}.{axis}" for name in ("ntid", "ctaid", "nctaid") for axis in "xyz"),
)
I8, I32, I64 = (ir.IntType(bits) for bits in (8, 32, 64))
SLOT = 8  # bytes of a frame per register


class Emitter:
    """Emits into ``target``, whose first two arguments are the context and the thread's number.

    frame_start: place of its first register in a frame, in bytes.
    """

    def __init__(self, target: Any, symbols: dict[str, int], frame_start: int) -> None:
        self.frame_end = frame_start
        self.target, self.symbols = target, symbols
        self.site = 0  # number of the instruction under translation
        self.local_addresses: dict[str, Any] = {}  # of local variables
        self.slots: dict[Register, Any] = {}
        self.prologue = Builder(target.append_basic_block("prologue"))
        self.b = self.prologue
        self.carry = self.b.alloca(I64)
        self._load_context()

    def _load_context(self) -> None:
        context, thread = self.target.args[:2]
        self.values = {name: self.b.load(self.b.gep(context, [I32(k)])) for k, name in enumerate(CONTEXT)}
        self.thread = self.b.zext(thread, I64)
        row = self.b.udiv(self.thread, self.values["ntid.x"])
        self.values["tid.x"] = self.b.urem(self.thread, self.values["ntid.x"])
        self.values["tid.y"] = self.b.urem(row, self.values["ntid.y"])
        self.values["tid.z"] = self.b.udiv(row, self.values["ntid.y"])
        tag = self.b.shl(self.values["interval"], I64(memory.THREAD_BITS))
        self.tag = self.b.trunc(self.b.add(tag, self.b.add(self.thread, I64(1))), I32)
        self.first_interval = self.b.trunc(self.values["first_interval"], I32)
        own_frame = self.b.mul(self.thread, self.values["frame_size"])
        self.frame_address = self.b.add(self.values["frames"], own_frame)
        own_local = self.b.mul(self.thread, self.values["local_stride"])
        self.local = self.b.add(self.values["local"], own_local)

    def new_block(self, name: str) -> Any:
        return self.target.append_basic_block(name)

    def go_on_in(self, block: Any) -> None:
        self.b = Builder(block)

    # -- host memory -------------------------------------------------------------------------------------------

    def host_pointer(self, address: Any, type_: Any) -> Any:
        return self.b.inttoptr(address, type_.as_pointer())

    def item_address(self, name: str, index: int) -> Any:
        """Host address of an eight-byte item of what the context points at."""
        return self.b.add(self.values[name], I64(8 * index))

    def item(self, name: str, index: int) -> Any:
        return self.b.load(self.host_pointer(self.item_address(name, index), I64))

    # -- registers ---------------------------------------------------------------------------------------------

    def _slot(self, register: Register) -> Any:
        if register not in self.slots:
            address = self.prologue.add(self.frame_address, I64(self.frame_end))
            self.slots[register] = self.prologue.inttoptr(address, LLVM_TYPES[register.type].as_pointer())
            self.frame_end += SLOT
        return self.slots[register]

    # -- operands ----------------------------------------------------------------------------------------------

    def value(self, operand: Operand, type_: str) -> Any:
        """An operand as a value of a PTX type, which is at most as wide as its register."""
        if isinstance(operand, Register):
            return self._register_value(operand, type_)
        if isinstance(operand, Constant):
            constant = ir.IntType(bits_of(type_))(operand.bits % (1 << bits_of(type_)))
            return self.b.bitcast(constant, LLVM_TYPES[type_]) if is_float(type_) else constant
        if isinstance(operand, Special):
            return self.b.trunc(self.values[operand.name], LLVM_TYPES[type_])
        if isinstance(operand, Symbol) and bits_of(type_) == 64:
            return self._symbol_address(operand.name)
        raise PtxError(f"{operand} as {type_}")

    def _register_value(self, register: Register, type_: str) -> Any:
        own, bits = bits_of(register.type), bits_of(type_)
        value = self.b.load(self._slot(register))
        if own < bits:
            raise PtxError(f"{register.name} ({register.type}) as {type_}")
        if own > bits:
            value = self.b.trunc(self.b.bitcast(value, ir.IntType(own)), ir.IntType(bits))
        return self.b.bitcast(value, LLVM_TYPES[type_])

    def _symbol_address(self, name: str) -> Any:
        if name in self.local_addresses:
            return self.local_addresses[name]
        return self.item("symbols", self.symbols[name])

    def assign(self, operand: Operand, value: Any, type_: str) -> None:
        """A result of a PTX type into a register at least as wide, sign- or zero-extended."""
        if not isinstance(operand, Register) or bits_of(operand.type) < bits_of(type_):
            raise PtxError(f"{type_} into {operand}")
        if bits_of(operand.type) > bits_of(type_):
            wide = ir.IntType(bits_of(operand.type))
            value = self.b.sext(value, wide) if type_[0] == "s" else self.b.zext(value, wide)
        self.b.store(self.b.bitcast(value, LLVM_TYPES[operand.type]), self._slot(operand))
