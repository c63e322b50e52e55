"""requirements.lock: exact, sorted, complete for what pyproject asks, and free of CUDA."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
LOCKED = {canonicalize_name(Requirement(line).name): next(iter(Requirement(line).specifier)).version for line in LINES}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_line_is_one_exact_version() -> None:
    assert len(LOCKED) == len(LINES) > 100
    assert all(re.match(r"^[A-Za-z0-9._-]+==[^ ]+( ; .+)?$", line) for line in LINES)
    assert sorted(LINES, key=str.upper) == LINES


def test_torch_carries_no_build_tag_and_cuda_is_not_there() -> None:
    assert "+" not in "".join(LINES)
    assert not [name for name in LOCKED if name.startswith(("nvidia-", "cuda-")) or name == "triton"]


def test_it_holds_a_version_in_range_of_everything_that_pyproject_asks() -> None:
    asked = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]]
    assert len(asked) > 20
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        assert name in LOCKED, f"{requirement} is not locked; run make lock"
        assert LOCKED[name] in requirement.specifier, f"{requirement}, but {LOCKED[name]} is locked"


def test_the_package_itself_is_not_in_it() -> None:
    assert "perdure" not in LOCKED
