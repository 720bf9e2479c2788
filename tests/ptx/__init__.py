"""Executes PTX on the CPU and checks every access to memory: the CUDA kernels tested without a GPU.

parser.py    text -> functions of instructions, module variables
blocks.py    basic blocks, and which registers are live between them
memory.py    device memory with a record per byte; the check of one access (bounds, races, ...)
opcodes.py   what each arithmetic instruction computes, in LLVM's instructions
translate.py a function as LLVM IR: registers, control flow, memory accesses, barriers, calls
program.py   a module compiled for this machine
launch.py    a grid of thread blocks, barrier by barrier; findings and coverage
gpu.py       stands in for the GPU under fastft.augment.cuda.CudaAugment: same launches, same arguments
batches.py   plans and images to run
faults.py    repeats launches with one deliberate fault each

Semantics: PTX ISA, https://docs.nvidia.com/cuda/parallel-thread-execution. Only what the kernels use is
implemented; anything else is a ``PtxError`` that names the line.
"""
