"""Peak memory of a function call."""

from collections.abc import Callable
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(work: Callable[[], object], device: torch.device) -> float | None:
    """Peak MB beyond what was held before the call; None where the system does not tell (for a CPU, Linux does)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    try:
        RESET.write_text("5")  # the peak of the resident memory
        resident = _kilobytes("VmRSS")
        work()
        return max(_kilobytes("VmHWM") - resident, 0) / 1e3
    except OSError:
        work()
        return None


def _kilobytes(field: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return float(line.split()[1])
