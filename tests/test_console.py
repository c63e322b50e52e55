"""What a log holds of a job's progress, and the codes that jobs end with."""

import re
from pathlib import Path

import pytest

from perdure import console
from perdure.console import EXIT_CODES, ConsoleProgress, guarded
from perdure.errors import ConfigError, Held, PerdureError, Unavailable
from perdure.settings import refuse_fleeting

ROOT = Path(__file__).resolve().parents[1]


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()]


def test_a_log_has_the_first_and_the_last_step_of_each_work_and_none_twice(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ConsoleProgress()
    for _ in range(2):
        for step in (0, 1, 2, 2):
            progress.step(step, 3, 0.5)
    progress.count("decoding", 4, 4)
    once = ["training, loss 0.500: 1/3", "training, loss 0.500: 3/3"]
    assert told(capsys) == [*once, *once, "decoding: 4/4"]


def test_a_long_work_is_told_of_each_time_that_a_while_has_passed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_QUIET_S", 0.0)
    progress = ConsoleProgress()
    for done in (1, 2, 2, 3, 9):
        progress.count("embedding", done, 9)
    assert told(capsys) == [f"embedding: {done}/9" for done in (1, 2, 3, 9)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (PerdureError("x"), 2),
        (ConfigError("x", ["y"]), 2),
        (Held("x"), 3),
        (Unavailable("x"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_how_a_command_ends_is_in_its_code(error: BaseException | None, code: int) -> None:
    def main(arguments: list[str]) -> None:
        if error is not None:
            raise error

    assert guarded(main, []) == code
    assert code in EXIT_CODES


def test_the_documented_codes_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "docs/how-to/cluster.md").read_text(), re.MULTILINE)
    assert {int(code): words for code, words in rows} == EXIT_CODES


def test_only_a_folder_that_ends_with_a_job_is_refused(tmp_path: Path) -> None:
    assert refuse_fleeting("PERDURE_RUNS", tmp_path / "runs") == tmp_path / "runs"
    copy = tmp_path / "session_1/runtime_resources/working_dir_files/_ray_pkg_1/runs"
    with pytest.raises(ConfigError, match="set PERDURE_RUNS to storage that stays"):
        refuse_fleeting("PERDURE_RUNS", copy)
