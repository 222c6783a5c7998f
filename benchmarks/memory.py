"""How much memory a process takes, as Linux tells it; None elsewhere. Needs nothing but Python's own library."""

import os
from pathlib import Path

PROC = Path("/proc")
RESET_PEAK = "5"
"""Written to `clear_refs`, it sets the kernel's high water mark back to what is resident now (man 5 proc)."""


def reset_peak() -> None:
    """Forget this process's high water mark, where the kernel lets it."""
    try:
        (PROC / "self" / "clear_refs").write_text(RESET_PEAK)
    except OSError:
        return


def peak_bytes() -> int | None:
    """Most resident memory of this process since `reset_peak`, in bytes."""
    return _read_status("self", "VmHWM")


def tree_bytes(pid: int) -> int:
    """Resident memory of a process and all below it, in bytes; pages that they share count once a process."""
    return sum(_read_status(str(one), "VmRSS") or 0 for one in [pid, *_descendants(pid)])


def own_bytes(pid: int) -> int:
    """The same without pages of files (mapped shards, libraries), which the kernel can take back at any time."""
    return sum(_read_status(str(one), "RssAnon") or 0 for one in [pid, *_descendants(pid)])


def disk_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _read_status(process: str, key: str) -> int | None:
    try:
        lines = (PROC / process / "status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return 1024 * int(found[0]) if found else None


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in (PROC / str(pid) / "task").glob("*"):
        try:
            children = [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
