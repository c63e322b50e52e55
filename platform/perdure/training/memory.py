"""How much memory a task's training takes, so that methods can be compared by it."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["PeakMemory"]

_PROCESS = Path("/proc/self")
_FORGET_PEAK = "5"  # what Linux's clear_refs takes to start the peak anew


class PeakMemory:
    """The most memory since this was made, in MiB: what torch holds on a GPU, or the resident memory of this process.

    Where the system cannot start its count anew (anything but Linux), the peak is that of the whole life of the process.

    Args:
        device: where the training runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):
                (_PROCESS / "clear_refs").write_text(_FORGET_PEAK)

    def mib(self) -> float:
        """The peak so far."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        return _resident_peak() / 2**20


def _resident_peak() -> int:
    """Bytes; what Linux says is told first, for getrusage may round and is in other units elsewhere."""
    with suppress(OSError):
        for line in (_PROCESS / "status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
