"""What an installed package contains."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "platform" / "perdure"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_file_that_is_no_python_is_named_in_package_data() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["perdure"]
    files = [str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}]
    assert "web/index.html" in files
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)] == []


def test_every_folder_with_python_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_version_is_told_once() -> None:
    import perdure

    assert perdure.__version__ == PROJECT["project"]["version"]
    assert f"## [{perdure.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
