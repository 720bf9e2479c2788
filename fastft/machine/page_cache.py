"""Whether files fit the memory, so that only the first epoch reads them from the disk."""

from pathlib import Path

from beton_tools.base.cgroup import memory_limit

RAM_SHARE = 0.9  # files up to this share of the available memory stay in the page cache


def memory_bytes() -> tuple[int, int]:
    """Total and available bytes: the machine's, or the control group's where that is smaller."""
    values = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        key, _, rest = line.partition(":")
        values[key] = int(rest.split()[0]) * 1024
    total, available = values["MemTotal"], values["MemAvailable"]
    limit = memory_limit()
    return (total, available) if limit is None else (min(total, limit), min(available, limit))


def fits_page_cache(num_bytes: int, available: int) -> bool:
    return num_bytes <= RAM_SHARE * available
