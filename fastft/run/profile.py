"""`train.profile`: a profile of some training steps in the run directory, for trace viewers and the run report."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from beton_tools.base.atomic import write_text

FOLDER = "profile"  # in the run directory
WARM_UP_STEPS = 3  # they compile, and allocate memory and the optimiser's state
TRACE, OPERATIONS, MEMORY = "trace.json", "operations.json", "memory.pickle"
MEMORY_EVENTS = 200_000  # that a snapshot of the GPU's memory keeps


class StepProfiler:
    """Records `steps` steps, 0 for none, after the first WARM_UP_STEPS of this process.

    Writes to `folder`: TRACE, as chrome://tracing and ui.perfetto.dev read it; OPERATIONS, the time of every operation; on a
    GPU MEMORY, which pytorch.org/memory_viz reads. Losses and weights are the same with and without.
    """

    def __init__(self, folder: Path, steps: int, device: torch.device) -> None:
        self.folder, self.steps, self.on_gpu = folder, steps, device.type == "cuda"
        self._done = 0
        self._recording: profile | None = None

    def close(self) -> None:
        """Write the profile of a training that ends before so many steps."""
        if self._recording is not None:
            self._write(self._recording)

    @contextmanager
    def range(self, name: str) -> Iterator[None]:
        """Name what runs inside: in the trace and, by NVTX, for Nsight Systems."""
        if self.steps == 0:
            yield
            return
        with record_function(name):
            if self.on_gpu:
                torch.cuda.nvtx.range_push(name)
            try:
                yield
            finally:
                if self.on_gpu:
                    torch.cuda.nvtx.range_pop()

    def count_step(self) -> None:
        """A step has ended; the recording begins or ends here."""
        if self.steps == 0:
            return
        self._done += 1
        if self._done == WARM_UP_STEPS:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])]
            if self.on_gpu:
                torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
            self._recording = profile(activities=activities, profile_memory=True, acc_events=True)
            self._recording.start()
        elif self._recording is not None and self._done == WARM_UP_STEPS + self.steps:
            self._write(self._recording)

    def _write(self, recording: profile) -> None:
        self._recording = None
        recording.stop()
        self.folder.mkdir(exist_ok=True)
        recording.export_chrome_trace(str(self.folder / TRACE))
        steps = min(self.steps, self._done - WARM_UP_STEPS)
        write_text(self.folder / OPERATIONS, json.dumps({"steps": steps, "operations": operations(recording)}))
        if self.on_gpu:
            torch.cuda.memory._dump_snapshot(str(self.folder / MEMORY))
            torch.cuda.memory._record_memory_history(enabled=None)


def operations(recording: profile) -> list[dict[str, Any]]:
    """Name, calls and seconds of each operation, without those that it calls, the longest first; of the GPU if there is one."""
    rows = [
        row
        for row in recording.key_averages()
        if row.device_type == DeviceType.CPU and not row.is_user_annotation  # kernels count for their operations
    ]
    on_gpu = any(row.self_device_time_total for row in rows)
    listed = [
        {
            "name": row.key,
            "calls": row.count,
            "seconds": (row.self_device_time_total if on_gpu else row.self_cpu_time_total) / 1e6,
        }
        for row in rows
    ]
    return sorted(listed, key=lambda row: -row["seconds"])
