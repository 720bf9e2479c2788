"""A PTX module compiled for this machine."""

import ctypes
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from tests.ptx.emitter import I32
from tests.ptx.parser import parse_module
from tests.ptx.translate import ENTRY_TYPE, FAULT, START, Translation


class Program:
    """The one entry of a module. Raises ``PtxError``."""

    def __init__(self, ptx: str) -> None:
        translation = Translation(parse_module(ptx))
        self.variables = translation.module.variables
        self.parameter_count = len(translation.module.entry.parameters)
        self.sites, self.barriers = translation.sites, translation.barriers
        self.frame_size, self.local_size = translation.frame_size, translation.local_size
        _add_thread_loop(translation.ir)
        self._engine = _compiled(translation.ir)
        signature = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3, ctypes.c_int32)
        self._run = signature(self._engine.get_function_address("run_interval"))

    def run_interval(self, context: np.ndarray, order: np.ndarray, resume: np.ndarray) -> int:
        """Runs every thread up to its next barrier. 0, or why the launch ends (FAULT).

        context: int64, see emitter.CONTEXT. order: int32 thread numbers. resume: int32 per thread, updated.
        """
        return int(self._run(context.ctypes.data, order.ctypes.data, resume.ctypes.data, len(order)))


def _add_thread_loop(module: ir.Module) -> None:
    """int32 run_interval(context, order, resume, count): every thread that has not exited, in that order."""
    pointer = I32.as_pointer()
    function = ir.Function(module, ir.FunctionType(I32, [ENTRY_TYPE.args[0], pointer, pointer, I32]), "run_interval")
    context, order, resume, count = function.args
    start, head, live, store, following, done, ended = (
        function.append_basic_block(name) for name in ("start", "head", "live", "store", "following", "done", "ended")
    )
    ir.IRBuilder(start).branch(head)
    b = ir.IRBuilder(head)
    k = b.phi(I32)
    thread = b.load(b.gep(order, [k]))
    place = b.gep(resume, [thread])
    at = b.load(place)
    b.cbranch(b.icmp_signed(">=", at, I32(START)), live, following)
    b = ir.IRBuilder(live)
    status = b.call(module.get_global("entry"), [context, thread, at])
    b.cbranch(b.icmp_signed("<=", status, I32(FAULT)), ended, store)
    b = ir.IRBuilder(store)
    b.store(status, place)
    b.branch(following)
    b = ir.IRBuilder(following)
    following_k = b.add(k, I32(1))
    b.cbranch(b.icmp_signed("<", following_k, count), head, done)
    k.add_incoming(I32(0), start)
    k.add_incoming(following_k, following)
    ir.IRBuilder(done).ret(I32(0))
    ir.IRBuilder(ended).ret(status)


def _compiled(module: ir.Module) -> Any:
    """Machine code with this processor's instructions (a fused multiply-add, if it has one).

    Not optimised: the code then takes 1.3 times as long, but its compilation a tenth.
    """
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    features = llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=0, jit=True
    )
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    return engine
