import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_imports_twice_and_makes_models_transforms_and_datasets() -> None:
    code = """
from perdure.torchvision_guard import import_torchvision
one, other = import_torchvision(), import_torchvision()
import torch
assert one is other
assert one.models.resnet18(weights=None)(torch.rand(2, 3, 32, 32)).shape == (2, 1000)
assert one.transforms.Resize(8)(torch.rand(3, 16, 16)).shape == (3, 8, 8)
print(one.datasets.CIFAR100.__name__)
"""
    assert run(code) == "CIFAR100"


def test_declares_nothing_where_the_operators_exist() -> None:
    code = """
import torch
for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
def refuse(*_): raise AssertionError("declared again")
define, torch.library.define = torch.library.define, refuse
from perdure.torchvision_guard import import_torchvision
import_torchvision()
print("ok")
"""
    assert run(code) == "ok"


def test_importing_the_encoders_does_not_import_torchvision() -> None:
    assert run("import sys, perdure.encoders; print('torchvision' in sys.modules)") == "False"
