"""What a piece of code asks of the card that only answers (card.c): launches, matrix products, waits, allocations, copies."""

import ctypes
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# as in card.c
COUNTS = (
    "launches", "products", "graphs", "waits", "allocations", "host_allocations", "to_device", "to_host", "on_device", "fills",
    "refused", "event_waits",
)  # fmt: skip


class Asked(Counter[str]):
    """By name of COUNTS."""

    @property
    def work(self) -> int:
        """What the host hands to the device: kernels, matrix products, graphs and fills."""
        return sum(self[name] for name in ("launches", "products", "graphs", "fills"))


@contextmanager
def counting() -> Iterator[Asked]:
    """What the block asks for; complete after it."""
    card, asked = ctypes.CDLL("libcuda.so.1"), Asked()
    counts = (ctypes.c_long * len(COUNTS)).in_dll(card, "fake_counts")
    card.fake_reset()
    yield asked
    asked.update(dict(zip(COUNTS, counts, strict=True)))


def launched(folder: Path) -> Counter[str]:
    """Kernels by demangled name, since the last `counting` began."""
    path = folder / "kernels.txt"
    ctypes.CDLL("libcuda.so.1").fake_write_kernels(str(path).encode())
    names = subprocess.run(["c++filt"], stdin=path.open(), capture_output=True, text=True, check=True).stdout
    found: Counter[str] = Counter()
    for line in names.splitlines():
        number, name = line.split(" ", 1)
        found[name] += int(number)
    return found
