"""How much memory is free, and freed memory that the C library keeps for the next maps of a network."""

import contextlib
import ctypes
import sys
from pathlib import Path

MEBI = 2**20


def keep_memory() -> None:
    """Let the C library keep freed memory for the next maps of a network, instead of asking the system page by page.

    Linux with glibc; elsewhere nothing happens. The largest maps gain most: a tenth of the time of deraining.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    trim, mmap = -1, -3  # malloc.h: M_TRIM_THRESHOLD, for which -1 is never, and M_MMAP_THRESHOLD
    # A threshold that it refuses would stay at 128 KiB, since setting any ends glibc's own adjustment.
    if mallopt(mmap, 1024 * MEBI) or mallopt(mmap, 32 * MEBI):
        mallopt(trim, -1)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of RAM that are free now, on the machine and in every container (cgroup) that this process is in.

    Pages of files that were read once count as free, because the system drops them first. 8 GiB where nothing is said.

    Args:
        root: of the file system.
    """
    free = 8 * 2**30
    with contextlib.suppress(OSError, ValueError):
        free = 1024 * _number(root / "proc/meminfo", "MemAvailable:")
    lines = []
    with contextlib.suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if not controllers:  # version 2
            folder, names = "", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            folder, names = "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = root / "sys/fs/cgroup" / folder / path.lstrip("/")
        for group in (own, *own.parents):  # a limit may stand above the group of the process
            with contextlib.suppress(OSError, ValueError):  # no such group here, or no limit
                limit = _number(group / names[0])
                free = min(free, limit)
                free = min(free, limit - _number(group / names[1]) + _number(group / "memory.stat", names[2]))
    return max(free, 0)


def _number(path: Path, name: str = "") -> int:
    """The number after a name in a file, or its first word."""
    words = path.read_text().split()
    return int(words[words.index(name) + 1 if name else 0])
