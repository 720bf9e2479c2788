"""Executes PTX on the CPU and checks every access to memory: the CUDA kernels tested without a GPU.

parser.py     text -> functions of instructions, and variables
memory.py     device memory with a record beside every byte; the check of an access (bounds, races, ...)
opcodes.py    what each arithmetic instruction computes, in LLVM's instructions
emitter.py    registers and operands of one thread, in LLVM's instructions
accesses.py   loads, stores, atomics
translate.py  a module as LLVM IR: basic blocks, control flow, barriers, calls
program.py    a module compiled for this machine
launch.py     a grid of thread blocks, barrier by barrier: findings
gpu.py        stands in for the GPU under fastft.augment.cuda.CudaAugment: same launches, same arguments
batches.py    plans and images to run

Semantics: PTX ISA, https://docs.nvidia.com/cuda/parallel-thread-execution. Only what the kernels use is
implemented; anything else is a ``PtxError`` that names the line.
"""
