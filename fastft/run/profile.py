"""`train.profile`: a profile of some training steps in the run directory, for trace viewers and the run report."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from beton_tools.base.typed_json import Count, Document, Number
from fastft.run.json_files import write_document

FOLDER = "profile"  # in the run directory
WARM_UP_STEPS = 3  # they compile, and allocate memory and the optimiser's state
TRACE, OPERATIONS, MEMORY = "trace.json", "operations.json", "memory.pickle"
MEMORY_EVENTS = 200_000  # events that a snapshot of GPU memory keeps


class Operation(Document):
    """How often an operation ran, and its seconds, without what it calls. On a GPU, they are the GPU's."""

    name: str
    calls: Count
    seconds: Number


class Operations(Document):
    """The content of OPERATIONS. operations: the longest first."""

    steps: Count
    operations: list[Operation]


class StepProfiler:
    """Records `steps` steps (0 for none) after the first WARM_UP_STEPS in this process.

    It writes up to three files to `folder`: TRACE for chrome://tracing and ui.perfetto.dev, OPERATIONS with every
    operation's time, and on a GPU MEMORY for pytorch.org/memory_viz. Losses and weights are the same with and without it.
    """

    def __init__(self, folder: Path, steps: int, device: torch.device) -> None:
        self.folder, self.on_gpu = folder, device.type == "cuda"
        self._profile: profile | None = None
        if steps == 0:
            return
        if self.on_gpu:
            torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
        self._profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])],
            schedule=schedule(skip_first=WARM_UP_STEPS - 1, wait=0, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
            profile_memory=True,
            acc_events=True,
        )
        self._profile.start()

    def range(self, name: str) -> AbstractContextManager:
        """Give what runs inside a name in the trace."""
        return nullcontext() if self._profile is None else record_function(name)

    def count_step(self) -> None:
        """Note that a step has ended. The recording begins or ends here."""
        if self._profile is not None:
            self._profile.step()

    def close(self) -> None:
        """Write the profile if training ends before the last step to record."""
        if self._profile is not None:
            self._profile.stop()

    def _write(self, recording: profile) -> None:
        self.folder.mkdir(exist_ok=True)
        recording.export_chrome_trace(str(self.folder / TRACE))
        steps = recording.step_num - WARM_UP_STEPS
        write_document(self.folder / OPERATIONS, Operations(steps=steps, operations=list_operations(recording)))
        if self.on_gpu:
            torch.cuda.memory._dump_snapshot(str(self.folder / MEMORY))
            torch.cuda.memory._record_memory_history(enabled=None)


def list_operations(recording: profile) -> list[Operation]:
    """List the operations, the longest first."""
    rows = [
        row
        for row in recording.key_averages()
        if row.device_type == DeviceType.CPU and not row.is_user_annotation  # kernels count for their operations
    ]
    on_gpu = any(row.self_device_time_total for row in rows)
    listed = [
        Operation(
            name=row.key,
            calls=row.count,
            seconds=(row.self_device_time_total if on_gpu else row.self_cpu_time_total) / 1e6,
        )
        for row in rows
    ]
    return sorted(listed, key=lambda operation: -operation.seconds)
