"""Precision: memory layout and number format of a training step.

`auto` takes what this machine computes fast: channels_last and bfloat16 autocast on a CPU with AVX512-BF16 or AMX and on a GPU
with bfloat16; plain float32 elsewhere. Weights, optimiser state and losses stay float32 in every mode.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Precision", "best_device", "resolve_precision"]


@dataclass(frozen=True)
class Precision:
    """How to run a forward pass on a device."""

    name: str  # "fp32" or "bf16"
    device: torch.device
    channels_last: bool

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device and layout, in place."""
        module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return module

    def images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float images on the device, in the layout."""
        images = images.to(self.device, non_blocking=True)
        return images.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)


def best_device() -> torch.device:
    """The GPU when torch sees one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def resolve_precision(name: str, device: torch.device | None = None) -> Precision:
    """`auto`, `fp32` or `bf16` on a device.

    `fp32` keeps torch's default layout, so that it is the plain baseline of our speed figures.
    """
    device = device or best_device()
    if name == "auto":
        name = "bf16" if _has_bf16(device) else "fp32"
        return Precision(name, device, channels_last=True)
    return Precision(name, device, channels_last=name == "bf16")


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = file.read()
    except OSError:  # not Linux: no cheap way to tell, and bfloat16 emulated in software is slower than float32
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
