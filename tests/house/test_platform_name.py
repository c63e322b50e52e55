"""The source root is called `platform`, like a module of the standard library that numpy, torch and ray import."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_import_platform_is_the_standard_librarys_from_the_root() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # as for a job that was submitted with this working dir
    code = "import platform; assert platform.system(); print(platform.__file__)"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert not Path(said.stdout.strip()).is_relative_to(ROOT / "platform")


def test_the_source_root_is_no_package_and_holds_no_loose_python() -> None:
    assert (ROOT / "platform" / "perdure" / "__init__.py").is_file()
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert list((ROOT / "platform").glob("*.py")) == []


def test_the_installed_package_is_this_one() -> None:
    import perdure

    assert Path(perdure.__file__).resolve().parent == ROOT / "platform" / "perdure"
    assert (ROOT / "platform" / "perdure" / "py.typed").is_file()
