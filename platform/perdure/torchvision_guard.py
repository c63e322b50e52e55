"""Import torchvision also where its compiled operators cannot be loaded.

The package index's torchvision wheels are linked against CUDA builds of torch. Beside a CPU-only torch their shared library does not
load, the operators `torchvision::nms` and `torchvision::qnms` do not exist, and `import torchvision` fails while it registers their
shapes. Models, transforms and datasets never call these two (they belong to object detection), so declaring them is enough.
"""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

__all__ = ["import_torchvision"]

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def import_torchvision() -> ModuleType:
    """The torchvision module; every import of torchvision in this package goes through here.

    Where the compiled operators load, nothing is declared. Elsewhere they are declared without an implementation: calling one says
    that torchvision has no kernel for it.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    _load_operators()
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", schema)
    return importlib.import_module("torchvision")


def _load_operators() -> None:
    """Load torchvision's own operators if this torch can; torchvision loads the same file again, which is harmless."""
    spec = importlib.util.find_spec("torchvision")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        for library in sorted(Path(folder).glob("_C*")):
            try:
                torch.ops.load_library(str(library))
            except (OSError, RuntimeError):
                continue
            return
