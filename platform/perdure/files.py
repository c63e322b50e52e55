"""Files that are there whole or not at all, whenever the process dies."""

from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, text: str) -> None:
    """Write a file in place of what was there: beside it first, then by a rename, which is one step."""
    beside = path.with_name(path.name + ".writing")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
