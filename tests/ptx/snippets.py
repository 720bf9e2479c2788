"""Small kernels written out in PTX, and how they are executed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.ptx.launch import Run, launch
from tests.ptx.memory import Memory
from tests.ptx.program import Program

TEMPLATE = """
.version 8.0
.target sm_70
.address_size 64
{variables}
.visible .entry snippet({parameters})
{{
    .reg .pred %p<9>;
    .reg .b16 %h<9>;
    .reg .b32 %r<9>;
    .reg .b64 %d<9>;
    .reg .f32 %f<9>;
    .reg .f64 %g<9>;
{body}
    ret;
}}
"""


def kernel(body: str, parameters: int = 1, variables: str = "") -> str:
    """PTX of a kernel whose parameters are the addresses p0, p1, ..."""
    names = ", ".join(f".param .u64 p{k}" for k in range(parameters))
    return TEMPLATE.format(variables=variables, parameters=names, body=body)


def execute(
    body: str,
    arrays: Sequence[np.ndarray],
    *,
    threads: int = 64,
    blocks: int = 1,
    read_only: Sequence[int] = (),
    uninitialised: Sequence[int] = (),
    most_visits: int = 10_000,
    **options: object,
) -> tuple[Run, list[np.ndarray]]:
    """Executes a kernel on copies of the arrays: what was found, and the arrays afterwards.

    read_only, uninitialised: numbers of arrays.
    """
    device = Memory()
    places = []
    for k, array in enumerate(arrays):
        content = None if k in uninitialised else np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        places.append(device.allocate(f"p{k}", array.nbytes, content=content, read_only=k in read_only))
    program = Program(kernel(body, len(arrays), **options))  # type: ignore[arg-type]
    addresses = [place.address for place in places]
    run = launch(program, device, (blocks,), (threads,), addresses, most_visits=most_visits)
    after = [
        device.bytes(place).view(array.dtype).reshape(array.shape) for place, array in zip(places, arrays, strict=True)
    ]
    return run, after
