"""The page of a sweep: complete, self-contained, and it says of every trial what became of it."""

import re
from pathlib import Path
from typing import Any

from perdure.report.sweep_page import write_sweep_page
from perdure.tuning import OBJECTIVE_DEFINITIONS, FirstTasks, Oracle


def trial(number: int, retention: float | None, gain: float | None, **changes: Any) -> dict[str, Any]:
    judged = {"retention": retention, "gain": gain, "metric": gain, "figures": {}}
    state = {"learned": 2, "of": 2, "stopped": False, "error": None}
    return {"name": f"s-{number}", "values": {"strategy.weight": number / 3}, **judged, **state, **changes}


TRIALS = [
    trial(1, 0.9, 0.5),
    trial(2, 0.8, 0.58),
    trial(3, 0.1, 0.6),
    trial(4, 0.05, 0.5, learned=2, of=3, stopped=True),
    trial(5, None, None, learned=0, of=None, error="<FloatingPointError>"),
]


def page(folder: Path, **changes: Any) -> str:
    sweep = {
        "name": "s",
        "protocol": {"name": "first_tasks"},
        "looks_at": FirstTasks.looks_at,
        "oracle": False,
        "retention_is": "measured",
        "definitions": OBJECTIVE_DEFINITIONS["measured"],
        "of": "recall@1",
        "metric": "gain",
        "reference": {"retention": 0.0, "gain": 0.61},
        "trials": TRIALS,
        "front": ["s-3", "s-2", "s-1"],
        "knee": "s-2",
        "best": {"name": "s-2", "values": {}},
        **changes,
    }
    write_sweep_page(folder / "sweep.html", sweep)
    return (folder / "sweep.html").read_text()


def test_the_page_is_complete_and_tells_of_each_trial_what_became_of_it(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", text) and "<script" not in text
    notes = re.findall(r"<td>([^<]*)</td></tr>", text)
    assert notes == ["", "front", "chosen, knee, front", "front", "stopped after 2 of 3 tasks", "failed: &lt;FloatingPointError&gt;"]
    assert all(words in text for words in (FirstTasks.looks_at.replace("'", "&#x27;"), "fine-tuning", "retention", "knee"))
    assert "Oracle" not in text


def test_a_front_is_drawn_where_there_is_one(tmp_path: Path) -> None:
    assert "<figure" in page(tmp_path)
    flat = [{**each, "retention": None} for each in TRIALS]
    assert "<figure" not in page(tmp_path, trials=flat, front=[], knee=None, reference={"retention": None, "gain": 0.6})


def test_an_estimate_is_called_one(tmp_path: Path) -> None:
    assert "estimated" not in page(tmp_path)
    text = page(tmp_path, retention_is="estimated", definitions=OBJECTIVE_DEFINITIONS["estimated"])
    assert "<th class=n>Retention, estimated</th>" in text and "retention is estimated" in text


def test_an_oracle_says_so_at_the_top(tmp_path: Path) -> None:
    text = page(tmp_path, oracle=True, protocol={"name": "oracle"}, looks_at=Oracle.looks_at)
    assert text.index("<b>Oracle.</b>") < text.index("<section")
