"""What the documents say exists: links, files, commands, make targets, options of jobs, configs with their overrides."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from perdure.checks import check
from perdure.cli import app
from perdure.config import load, parse
from perdure.tuning import load_sweep

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
COMMANDS = typer.main.get_command(app)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def shell_lines(text: str) -> Iterator[list[str]]:
    """The commands of fenced `sh` blocks and of inline code, split into words; continuation lines joined."""
    blocks = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`((?:perdure|make|python|\.venv/bin/python) [^`\n]+)`", prose)
    for line in [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *inline]:
        for command in re.split(r" && | \| |; ", line.removeprefix("$ ")):
            try:
                words = shlex.split(command, comments=True)
            except ValueError:
                continue  # half of a quoted pipe; no command of ours has one
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words:
                yield words


def problem_of(words: list[str]) -> str | None:
    """Why a documented command would not work here; None when it would, or is not ours to judge."""
    if "--" in words and words[0] in {"ray", "kubectl"}:
        words = words[words.index("--") + 1 :]
    tool = words[0].removeprefix(".venv/bin/")
    if tool == "make":
        missing = [word for word in words[1:] if "=" not in word and word not in TARGETS]
        return f"make has no target {missing}" if missing else None
    if tool == "perdure":
        return _perdure_problem(words[1:])
    if tool == "python" and len(words) > 1 and words[1].endswith(".py"):
        script = ROOT / words[1]
        if not script.is_file():
            return f"no file {words[1]}"
        text = script.read_text()
        unknown = [word for word in words[2:] if word.startswith("--") and f'"{word.split("=")[0]}"' not in text]
        return f"{words[1]} has no option {unknown}" if unknown else _config_problem(words[2:])
    if tool in {"serve", "kubectl", "docker"}:
        gone = [word for word in words[1:] if re.match(r"^(serve|k8s|jobs)/", word) and not (ROOT / word).exists()]
        return f"no file {gone}" if gone else None
    return None


def _perdure_problem(words: list[str]) -> str | None:
    """Commands and options as typer knows them."""
    if not words or words[0].isupper() or words[0].startswith("-"):
        return None
    command = COMMANDS.commands.get(words[0])
    if command is None:
        return f"perdure has no command '{words[0]}'"
    options = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]} | {"--help"}
    unknown = [word for word in words[1:] if re.match(r"--?[a-z]", word) and word.split("=")[0] not in options]
    return f"perdure {words[0]} has no option {unknown}" if unknown else _config_problem(words[1:])


def _config_problem(words: list[str]) -> str | None:
    """A config of this repository with the overrides that are documented for it."""
    files = [word for word in words if word.endswith(".yaml") and word.startswith(("jobs/", "tune_configs/"))]
    overrides = [word for word in words if re.fullmatch(r"[a-z_.]+=\S+", word)]
    for file in files:
        if not (ROOT / file).is_file():
            return f"no file {file}"
        if file.startswith("tune_configs/"):
            load_sweep(ROOT / file, overrides)
        else:
            problems = check(load(ROOT / file, overrides))
            if problems:
                return "; ".join(problems)
    return None


def test_there_are_documents_and_they_hold_commands() -> None:
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/tour.md"} <= {name_of(path) for path in DOCUMENTS}
    assert len(list((ROOT / "docs" / "decisions").glob("[0-9][0-9][0-9][0-9]-*.md"))) >= 6
    judged = [words for path in DOCUMENTS for words in shell_lines(path.read_text())]
    assert len(judged) >= 30


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_leads_to_a_file(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_exists(path: Path) -> None:
    problems = [f"{shlex.join(words)}: {problem}" for words in shell_lines(path.read_text()) if (problem := problem_of(words))]
    assert problems == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_config_in_a_document_is_one(path: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        raw = yaml.safe_load(block)
        if isinstance(raw, dict) and "stream" in raw:
            assert check(parse(raw)) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_module_that_is_named_exists(path: Path) -> None:
    roots = (ROOT, ROOT / "platform" / "perdure", path.parent)
    named = re.findall(r"`((?:[a-z_0-9]+/)*[a-z_0-9]+\.py)`", path.read_text())
    example = {
        "platform/perdure/strategies/cosine.py",
        "platform/perdure/losses/cosine.py",
        "platform/__init__.py",
    }  # to be written by the reader; never to be written
    assert [name for name in named if name not in example and not any((root / name).exists() for root in roots)] == []


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("make dance", "no target"),
        ("perdure promot demo@v1", "no command"),
        ("perdure search --txt hello", "no option"),
        ("python jobs/cook.py", "no file"),
        ("python jobs/train.py jobs/configs/scenes.yaml strategy.nam=l2", "no such option"),
        ("ray job submit -- python jobs/cook.py", "no file"),
        ("kubectl apply -k k8s/overlays/staging", "no file"),
    ],
)
def test_a_wrong_command_is_noticed(command: str, complaint: str) -> None:
    assert complaint in (problem_of(command.split()) or "")
