"""CUDA kernels for steps with half-precision weights: residual sum with LayerNorm, forward and backward, and SiLU's gradient.

Each reads and writes every element once, where PyTorch's operations take two or three passes. Two channels of fp16 or bf16
are one 32-bit word, and the arithmetic is fp32. Each block of threads writes its own column sums, which are the gradients for
gains and biases. It takes the same rows in every run, so that they are added in a fixed order. R: rows (images times
tokens), D: channels.

Needs numba-cuda (the extra cuda12 or cuda13) and compute capability 7.0 or more.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from numba import config, cuda, float32, int16, int32, int64, types, uint16, uint32
from numba.cuda import libdevice
from torch import Tensor

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # a small batch is no mistake
LANES = 128  # threads per block, for each 1024 channels
GROUP = 8  # threads whose values one thread adds up
WORDS, FLOATS = types.CPointer(uint32), types.CPointer(float32)
SIGNATURES = {
    "add_norm": (*(WORDS,) * 6, FLOATS, float32),
    "add_norm_backward": (*(WORDS,) * 4, FLOATS, WORDS, FLOATS, int64),
    "silu_backward": (*(WORDS,) * 3, FLOATS, int64),
}


def launch_bounds(width: int) -> tuple[int, int]:
    """Return (threads per block, blocks that a multiprocessor should hold)."""
    parts = -(-width // 1024)
    return LANES * parts, max(1, 4 // parts)


def launch(operation: str, arguments: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    """Run an operation of `fastft.model.fused` on torch's current stream, without waiting for it.

    arguments: contiguous tensors on one device, and eps. The last tensor has the shape (..., D).
    """
    given = [*arguments, *outputs]
    tensors = [t for t in given if isinstance(t, Tensor)]
    x, sums, device = tensors[1], outputs[-1], tensors[1].get_device()
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    threads, _ = launch_bounds(width)
    grid = {
        "add_norm": rows, "add_norm_backward": len(sums), "silu_backward": (-(-width // (2 * threads)), len(sums)),
    }[operation]  # fmt: skip
    last = arguments[-1] if operation == "add_norm" else rows
    with cuda.gpus[device]:
        stream = cuda.external_stream(torch.cuda.current_stream(device).cuda_stream)
        kernel = _compiled(operation, width, x.dtype, device)
        kernel[grid, threads, stream](*(t.data_ptr() for t in tensors), last)


@cache
def _compiled(operation: str, width: int, dtype: torch.dtype, device: int) -> Any:
    """Return the kernel, compiled for the current device."""
    jit = cuda.jit(SIGNATURES[operation], lto=False, launch_bounds=launch_bounds(width))
    return jit(kernels(width, dtype)[operation])


# numbers --------------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def _fp16_pair(word):
    return libdevice.half2float(int16(word & 0xFFFF)), libdevice.half2float(int16(word >> 16))


@cuda.jit(device=True)
def _fp16_word(low, high):
    return uint32(uint16(libdevice.float2half_rn(low))) | uint32(uint16(libdevice.float2half_rn(high))) << 16


@cuda.jit(device=True)
def _bf16_pair(word):
    return libdevice.int_as_float(int32(word << 16)), libdevice.int_as_float(int32(word & 0xFFFF0000))


@cuda.jit(device=True)
def _bf16_bits(value):
    """Round to nearest even. The sum would carry a NaN into its sign."""
    bits = uint32(libdevice.float_as_int(value))
    return uint32(0x7FC0) if value != value else uint32(bits + 0x7FFF + (bits >> 16 & 1)) >> 16


@cuda.jit(device=True)
def _bf16_word(low, high):
    return uint32(_bf16_bits(low) | _bf16_bits(high) << 16)


@cuda.jit(device=True)
def _silu_slope(x):
    share = float32(1.0) / (float32(1.0) + libdevice.fast_expf(-x))
    return share * (float32(1.0) + x * (float32(1.0) - share))


def kernels(width: int, dtype: torch.dtype) -> dict[str, Callable[..., None]]:
    """Return the operations, not compiled, for an even width D and float16 or bfloat16."""
    return {
        "add_norm": _add_norm(width, dtype),
        "add_norm_backward": _add_norm_backward(width, dtype),
        "silu_backward": _silu_backward(width, dtype),
    }


def _pair_and_word(dtype):
    return (_bf16_pair, _bf16_word) if dtype == torch.bfloat16 else (_fp16_pair, _fp16_word)


def _row_sizes(width):
    """Return (words per row, threads per block, channels per thread)."""
    threads, _ = launch_bounds(width)
    return width // 2, threads, 2 * -(-(width // 2) // threads)


def _row_functions(width, dtype):
    (pairs, threads, channels), (pair, word) = _row_sizes(width), _pair_and_word(dtype)
    own, groups, share = channels // 2, threads // GROUP, float32(1 / width)

    @cuda.jit(device=True, forceinline=True)
    def load(words, first, values):
        """Load this thread's channels from a row, and zeros past the row's end."""
        for k in range(own):
            place = cuda.threadIdx.x + k * threads
            values[2 * k], values[2 * k + 1] = pair(words[first + place] if place < pairs else uint32(0))

    @cuda.jit(device=True, forceinline=True)
    def store(words, first, values):
        """Round the values and store them."""
        for k in range(own):
            place = cuda.threadIdx.x + k * threads
            rounded = word(values[2 * k], values[2 * k + 1])
            values[2 * k], values[2 * k + 1] = pair(rounded)
            if place < pairs:
                words[first + place] = rounded

    @cuda.jit(device=True, forceinline=True)
    def add_up(first, second, shared):
        """Return both means over a row's channels, the same in every thread."""
        thread = cuda.threadIdx.x
        shared[0, thread], shared[1, thread] = first, second
        cuda.syncthreads()
        if thread < 2 * groups:
            total = float32(0.0)
            for k in range(GROUP):
                total += shared[thread // groups, thread % groups * GROUP + k]
            shared[2, thread] = total
        cuda.syncthreads()
        first, second = float32(0.0), float32(0.0)
        for k in range(groups):
            first, second = first + shared[2, k], second + shared[2, groups + k]
        return first * share, second * share

    return load, store, add_up


def _add_norm(width, dtype):
    (pairs, threads, channels), (load, store, add_up) = _row_sizes(width), _row_functions(width, dtype)

    def add_norm(x, branch, gain, shift, total, normed, statistics, eps):
        """total = x + branch, normed = LayerNorm(total). statistics (R, 2): mean and 1 / deviation. One block per row."""
        shared = cuda.shared.array((3, threads), float32)
        values, others = cuda.local.array(channels, float32), cuda.local.array(channels, float32)
        row = int64(cuda.blockIdx.x)
        load(x, row * pairs, values)
        load(branch, row * pairs, others)
        first = float32(0.0)
        for k in range(channels):
            values[k] += others[k]
        store(total, row * pairs, values)
        for k in range(channels):
            first += values[k]
        mean, _ = add_up(first, first, shared)
        square = float32(0.0)
        for k in range(channels):
            if cuda.threadIdx.x + k // 2 * threads < pairs:
                square += (values[k] - mean) * (values[k] - mean)
        variance, _ = add_up(square, square, shared)
        scale = float32(1.0) / math.sqrt(variance + eps)
        load(gain, 0, others)
        for k in range(channels):
            values[k] = (values[k] - mean) * scale * others[k]
        load(shift, 0, others)
        for k in range(channels):
            values[k] += others[k]
        store(normed, row * pairs, values)
        if cuda.threadIdx.x == 0:
            statistics[2 * row], statistics[2 * row + 1] = mean, scale

    return add_norm


def _add_norm_backward(width, dtype):
    (pairs, threads, channels), (load, store, add_up) = _row_sizes(width), _row_functions(width, dtype)

    def add_norm_backward(grad_total, grad_normed, total, gain, statistics, grad, sums, rows):
        """grad: for total, through both outputs. sums (blocks, 3, D): gradients for gain, shift and a bias in total."""
        shared = cuda.shared.array((3, threads), float32)
        direct, normal = cuda.local.array(channels, float32), cuda.local.array(channels, float32)
        grads, gains = cuda.local.array(channels, float32), cuda.local.array(channels, float32)
        for_gain, for_shift = cuda.local.array(channels, float32), cuda.local.array(channels, float32)
        for_bias = cuda.local.array(channels, float32)
        for k in range(channels):
            for_gain[k] = for_shift[k] = for_bias[k] = float32(0.0)
        load(gain, 0, gains)
        for row in range(int64(cuda.blockIdx.x), rows, int64(cuda.gridDim.x)):
            load(total, row * pairs, normal)
            load(grad_normed, row * pairs, grads)
            load(grad_total, row * pairs, direct)
            mean, scale = statistics[2 * row], statistics[2 * row + 1]
            first, second = float32(0.0), float32(0.0)
            for k in range(channels):
                normal[k] = (normal[k] - mean) * scale
                for_gain[k] += grads[k] * normal[k]
                for_shift[k] += grads[k]
                grads[k] *= gains[k]
                first += grads[k]
                second += grads[k] * normal[k]
            first, second = add_up(first, second, shared)
            for k in range(channels):
                direct[k] += scale * (grads[k] - first - normal[k] * second)
                for_bias[k] += direct[k]
            store(grad, row * pairs, direct)
        for k in range(channels):
            channel = 2 * (cuda.threadIdx.x + k // 2 * threads) + k % 2
            if channel < width:
                place = int64(cuda.blockIdx.x) * 3 * width + channel
                sums[place], sums[place + width], sums[place + 2 * width] = for_gain[k], for_shift[k], for_bias[k]

    return add_norm_backward


def _silu_backward(width, dtype):
    (pairs, threads, _), (pair, word) = _row_sizes(width), _pair_and_word(dtype)

    def silu_backward(grad_out, x, grad, sums, rows):
        """grad = grad_out silu'(x). sums (blocks, D). The grid's axes: a row's words, and blocks of rows."""
        place = cuda.blockIdx.x * threads + cuda.threadIdx.x
        if place < pairs:
            first, second = float32(0.0), float32(0.0)
            for row in range(int64(cuda.blockIdx.y), rows, int64(cuda.gridDim.y)):
                at = row * pairs + place
                (low, high), (x_low, x_high) = pair(grad_out[at]), pair(x[at])
                low, high = low * _silu_slope(x_low), high * _silu_slope(x_high)
                grad[at] = word(low, high)
                first, second = first + low, second + high
            at = int64(cuda.blockIdx.y) * width + 2 * place
            sums[at], sums[at + 1] = first, second

    return silu_backward
