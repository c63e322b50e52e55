"""Who may import whom: DESIGN's table, read from the imports themselves.

A line knows the lines below it; rooms on one line do not know each other. The files of the bottom line are one room.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "platform" / "perdure"

LINES: list[set[str]] = [  # top to bottom
    {"jobs", "serve", "cli"},
    {"cluster"},
    {"run"},
    {"pictures"},
    {"pipeline", "report"},
    {"training", "retrieval", "checks"},
    {"stream", "strategies", "registry"},
    {"data", "encoders", "memory", "index", "tuning"},
    {"losses", "metrics", "client"},
    {"bottom"},
]
BOTTOM = {
    "__init__",
    "records",
    "config",
    "settings",
    "catalog",
    "errors",
    "files",
    "tracking",
    "progress",
    "console",
    "identity",
    "torchvision_guard",
}
LEVEL = {room: level for level, line in enumerate(reversed(LINES)) for room in line}
PLAYS_BOTH_PARTS = {"jobs/demo.py": {"serve.run", "serve.schemas"}}  # the demo learns and serves in one program; nothing else may
RAY_ROOMS = {"cluster", "jobs", "serve"}
LOSSES_MAY_USE = {"torch", "perdure", *sys.stdlib_module_names}
ONE_FILE_OF_LOSSES = {"ranges.py": {"pydantic"}, "metric/library.py": {"pytorch_metric_learning"}}  # may use this too


def room_of(path: Path) -> str:
    """`platform/perdure/index/flat.py` -> index; `platform/perdure/errors.py` -> bottom; `jobs/train.py` -> jobs."""
    if path.is_relative_to(PACKAGE):
        first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        return "bottom" if first in BOTTOM else first
    return path.relative_to(ROOT).parts[0]


def imported_modules(source: str) -> Iterator[str]:
    """Every module that a file imports, at any depth, also by `import_module("...")`; relative imports as `.name`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level + (node.module or "")
            elif node.module == "perdure":  # `from perdure import errors` names rooms, not attributes
                yield from (f"perdure.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def target_room(module: str) -> str | None:
    """The room of an imported module, None when it is not ours."""
    parts = module.split(".")
    if parts[0] in {"jobs", "serve"}:
        return parts[0]
    if parts[0] != "perdure":
        return None
    if len(parts) == 1 or parts[1] in BOTTOM or parts[1] == "__version__":
        return "bottom"
    return parts[1]


def violations(room: str, source: str) -> list[str]:
    """What a file of this room imports and should not."""
    found = []
    for module in imported_modules(source):
        target = target_room(module)
        if module.startswith("."):
            found.append(f"relative import '{module}'")
        elif module.split(".")[0] == "ray" and room not in RAY_ROOMS:
            found.append(f"imports {module}, and ray belongs to {', '.join(sorted(RAY_ROOMS))}")
        elif target is not None and target != room:
            if target not in LEVEL:
                found.append(f"imports {module}, whose room is not in the table")
            elif LEVEL[target] >= LEVEL[room]:
                found.append(f"imports {module}, which is not below {room}")
    return found


def sources() -> list[Path]:
    """Every Python file of the product."""
    return sorted(path for folder in (PACKAGE, ROOT / "jobs", ROOT / "serve") for path in folder.rglob("*.py"))


def test_every_module_imports_only_what_lies_below_it() -> None:
    files = sources()
    unknown = sorted({room_of(path) for path in files} - set(LEVEL))
    assert not unknown, f"rooms that the table does not name: {unknown}"
    wrong = [
        f"{path.relative_to(ROOT)}: {problem}"
        for path in files
        for problem in violations(room_of(path), path.read_text())
        if not any(f"imports {module}," in problem for module in PLAYS_BOTH_PARTS.get(str(path.relative_to(ROOT)), ()))
    ]
    assert not wrong, "\n".join(wrong)


def test_it_looked_into_every_room() -> None:
    seen: dict[str, int] = {}
    for path in sources():
        seen[room_of(path)] = seen.get(room_of(path), 0) + 1
    assert set(seen) == set(LEVEL), f"rooms without a module: {sorted(set(LEVEL) - set(seen))}"
    assert sum(seen.values()) >= 60, f"only {sum(seen.values())} modules seen: {seen}"


def test_the_bottom_line_names_files_that_exist() -> None:
    missing = [name for name in BOTTOM if not (PACKAGE / f"{name}.py").is_file()]
    assert not missing


def test_losses_need_torch_alone() -> None:
    files = {str(path.relative_to(PACKAGE / "losses")): path for path in (PACKAGE / "losses").rglob("*.py")}
    assert ONE_FILE_OF_LOSSES.keys() <= files.keys()
    for name, path in files.items():
        for module in imported_modules(path.read_text()):
            assert module.split(".")[0] in LOSSES_MAY_USE | ONE_FILE_OF_LOSSES.get(name, set()), f"{name} imports {module}"


@pytest.mark.parametrize(
    ("room", "line", "complaint"),
    [
        ("losses", "from perdure.encoders.encoder import Encoder", "not below losses"),
        ("losses", "from perdure.metrics import retrieval", "not below losses"),
        ("data", "def f():\n    import perdure.index.flat", "not below data"),
        ("training", "import importlib\nimportlib.import_module('perdure.pipeline')", "not below training"),
        ("bottom", "from perdure import strategies", "not below bottom"),
        ("strategies", "from ray import train", "ray belongs to"),
        ("index", "from .flat import FlatPartition", "relative import"),
        ("cli", "from perdure.kitchen import stove", "not in the table"),
    ],
)
def test_a_wrong_import_is_noticed(room: str, line: str, complaint: str) -> None:
    assert any(complaint in problem for problem in violations(room, line))


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("strategies", "from perdure.losses.triplet import batch_hard_triplet"),
        ("bottom", "from perdure.errors import ConfigError"),
        ("cluster", "import ray"),
        ("serve", "from perdure.retrieval.retriever import Retriever"),
        ("index", "from perdure.index.flat import FlatPartition"),
    ],
)
def test_a_right_import_is_not(room: str, line: str) -> None:
    assert violations(room, line) == []
