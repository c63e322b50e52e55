"""Methods over seeds: figures computed by hand, the table, the page and the job, on reports that are written down here."""

import importlib.util
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import DataError
from perdure.report import comparison_table, cost_table, relative_table, write_comparison
from perdure.report.methods import half_width, mean_report, methods_of

ROOT = Path(__file__).resolve().parents[1]
T_2 = 0.95 / math.sqrt(2 * 0.975 * 0.025)  # 4.3027: the 97.5 % quantile with 2 degrees of freedom, (2 p - 1) / sqrt(2 p (1 - p))
OLD = {"fine_tune": (0.40, 0.50, 0.30), "lwf": (0.60, 0.65, 0.55), "joint": (0.80, 0.90, 0.70)}  # of seeds 0, 1 and 2
NEW = {"fine_tune": (0.95, 0.90, 0.85), "lwf": (0.90, 0.90, 0.84), "joint": (0.90, 0.85, 0.80)}
FIRST = (0.90, 0.95, 0.85)  # the first task right after it was learned: the same encoder for fine_tune and lwf


def run(strategy: str, seed: int, **more: Any) -> dict[str, Any]:
    """A report of two tasks, as small as one can be."""
    learned = 0.88 if strategy == "joint" else FIRST[seed]
    matrix = [[learned, 0.1], [OLD[strategy][seed], NEW[strategy][seed]]]
    return {
        "name": f"{strategy}-s{seed}",
        "config": {
            "name": f"{strategy}-s{seed}",
            "seed": seed,
            "stream": {"dataset": {"name": "scenes"}},
            "strategy": {"name": strategy},
            "train": {"epochs": 3, "start_from": f"first-s{seed}"},
            "index": {"policy": "reindex"},
            "registry": f"registry-{seed}",
        },
        "definitions": {"recall@k": "A hit among the first k.", "map": "Mean average precision."},
        "tasks": [{"name": "a", "classes": [f"c{seed}"]}, {"name": "b", "classes": [f"d{seed}"]}],
        "metrics": {"recall@1": {"matrix": matrix}, "map": {"matrix": [[value / 2 for value in row] for row in matrix]}},
        "summary": {"metric": "recall@1", "by_metric": {"recall@1": {"forward_transfer": 0.01 * (seed + 1)}}},
        "train": [
            {"task": 0, "seconds": 10.0, "steps": 100, "images_per_s": 1.0, "peak_memory_mb": 500.0},
            {"task": 1, "seconds": 20.0 + seed, "steps": 100, "images_per_s": 1.0, "peak_memory_mb": 400.0 + 200 * seed},
        ],
        **more,
    }


@pytest.fixture
def runs() -> list[dict[str, Any]]:
    return [run(strategy, seed) for strategy in ("fine_tune", "lwf", "joint") for seed in range(3)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def half(values: list[float]) -> float:
    centre = mean(values)
    return T_2 * math.sqrt(sum((value - centre) ** 2 for value in values) / 2) / math.sqrt(3)


class Text(HTMLParser):
    """The words of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.feed(source)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_interval_is_that_of_students_distribution() -> None:
    assert half_width([0.60, 0.65, 0.55]) == pytest.approx(half([0.60, 0.65, 0.55]))
    assert half_width([0.60, 0.65, 0.55]) == pytest.approx(4.30265 * 0.05 / math.sqrt(3), rel=1e-5)
    assert half_width([1.0, 3.0]) == pytest.approx(12.7062047 * math.sqrt(2) / math.sqrt(2))
    assert half_width([0.5]) is half_width([]) is None
    assert half_width([0.5, 0.5]) == 0.0


def test_runs_that_differ_only_in_seed_and_name_are_one_method(runs: list[dict[str, Any]]) -> None:
    found = methods_of(runs)
    assert [(method.name, len(method.runs)) for method in found] == [("fine_tune", 3), ("lwf", 3), ("joint", 3)]
    other = run("lwf", 0)
    other["config"]["train"]["epochs"] = 4
    other["name"] = "longer"
    assert [method.name for method in methods_of([*runs, other])] == ["fine_tune", "lwf", "joint", "longer"]


def test_an_option_that_is_null_is_one_that_an_older_report_lacks(runs: list[dict[str, Any]]) -> None:
    newer = run("lwf", 1)
    newer["config"]["train"]["backbone_lr"] = None
    assert [len(method.runs) for method in methods_of([run("lwf", 0), newer])] == [2]
    newer["config"]["train"]["backbone_lr"] = 0.1
    assert [len(method.runs) for method in methods_of([run("lwf", 0), newer])] == [1, 1]


def test_the_same_seed_twice_is_not_more_evidence() -> None:
    again = {**run("lwf", 0), "name": "again"}
    found = methods_of([run("lwf", 0), again, run("lwf", 1)])
    assert [[one["name"] for one in method.runs] for method in found] == [["lwf-s0", "lwf-s1"], ["again"]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["lwf-s0", "lwf-s1"], "lwf"),
        (["lwf-seed-3", "lwf-seed-14"], "lwf"),
        (["glass0", "glass1"], "glass"),
        (["cub_lwf.s1", "cub_lwf.s2"], "cub_lwf"),
        (["first", "second"], "lwf"),
        (["0", "1"], "lwf"),
    ],
)
def test_a_method_is_called_what_its_runs_are_called_without_the_seed(names: list[str], expected: str) -> None:
    assert methods_of([{**run("lwf", seed), "name": name} for seed, name in enumerate(names)])[0].name == expected


def test_every_figure_is_the_mean_over_seeds_of_figures_computed_by_hand(runs: list[dict[str, Any]]) -> None:
    rows, _ = comparison_table(runs)
    _, lwf, joint = rows
    by_hand = {
        "old": list(OLD["lwf"]),
        "new": list(NEW["lwf"]),
        "last_average": [(old + new) / 2 for old, new in zip(OLD["lwf"], NEW["lwf"], strict=True)],
        "forgetting": [0.30, 0.30, 0.30],
        "gap_closed": [0.20 / 0.40, 0.15 / 0.40, 0.25 / 0.40],
        "kept": [0.20 / 0.50, 0.15 / 0.45, 0.25 / 0.55],
        "forgetting_share": [0.30 / 0.50, 0.30 / 0.45, 0.30 / 0.55],
        "new_difference": [-0.05, 0.0, -0.01],
        "intransigence": [((0.88 - first) + (there - own)) / 2 for first, there, own in zip(FIRST, NEW["joint"], NEW["lwf"], strict=True)],
        "backward_transfer": [-0.30, -0.30, -0.30],
        "forward_transfer": [0.01, 0.02, 0.03],
        "seconds": [30.0, 31.0, 32.0],
        "steps_per_s": [100 / 20, 100 / 21, 100 / 22],
        "peak_memory_mb": [500.0, 600.0, 800.0],
    }
    for key, values in by_hand.items():
        assert lwf[key] == pytest.approx(mean(values)), key
        assert lwf["interval"][key] == pytest.approx(half(values), rel=1e-9, abs=1e-12), key
        assert [one[key] for one in lwf["per_seed"]] == pytest.approx(values), key
    assert joint["gap_closed"] == 1.0 and joint["intransigence"] == 0.0
    assert lwf["over_time"][0]["mean"] == pytest.approx(mean(list(FIRST)))
    assert lwf["over_time"][1]["interval"] == pytest.approx(half(by_hand["last_average"]))


def test_a_reference_counts_for_its_own_seed_and_tasks_only(runs: list[dict[str, Any]]) -> None:
    rows, text = comparison_table([one for one in runs if one["name"] != "joint-s1"])
    lwf = rows[1]
    assert [one["gap_closed"] for one in lwf["per_seed"]] == [pytest.approx(0.5), None, pytest.approx(0.625)]
    assert lwf["gap_closed"] == pytest.approx(0.5625)
    assert "(n=2)" in text
    elsewhere = {**run("joint", 1), "tasks": [{"classes": ["x"]}, {"classes": ["y"]}]}
    rows, _ = comparison_table([run("fine_tune", 1), run("lwf", 1), elsewhere])
    assert rows[1]["gap_closed"] is None


def test_of_several_references_the_one_of_the_same_setting_counts() -> None:
    longer = {seed: run("fine_tune", seed) for seed in (0, 1)}
    for one in longer.values():
        one["config"]["train"]["epochs"] = 9
        one["metrics"]["recall@1"]["matrix"][1] = [0.0, 0.0]
    rows, _ = comparison_table([longer[0], run("fine_tune", 0), run("lwf", 0)])
    assert rows[-1]["new_difference"] == pytest.approx(NEW["lwf"][0] - NEW["fine_tune"][0])
    rows, _ = comparison_table([longer[0], run("lwf", 0)])
    assert rows[-1]["new_difference"] == pytest.approx(NEW["lwf"][0])


def test_one_seed_has_no_interval_and_the_table_says_nothing_of_seeds() -> None:
    rows, text = comparison_table([run("fine_tune", 0), run("lwf", 0)])
    assert rows[1]["interval"]["old"] is None
    assert "±" not in text and "seeds" not in text
    assert "60.0" in text


def test_a_report_that_was_written_before_there_were_these_figures_is_compared_by_what_it_has() -> None:
    old = run("lwf", 0)
    old["summary"] = {"metric": "recall@1"}
    old["train"] = [{"task": task, "seconds": 5.0, "images_per_s": 1.0} for task in (0, 1)]
    for key in ("config", "definitions", "tasks"):
        del old[key]
    rows, text = comparison_table([old])
    assert rows[0]["old"] == 0.60
    assert rows[0]["seconds"] == 10.0
    assert rows[0]["steps_per_s"] is rows[0]["peak_memory_mb"] is rows[0]["forward_transfer"] is None
    assert "lwf-s0" in text
    assert "steps" not in cost_table(rows)
    assert cost_table(comparison_table([{**old, "train": []}])[0]) == ""


def test_tables_for_a_terminal_hold_means_and_intervals_in_columns(runs: list[dict[str, Any]]) -> None:
    rows, text = comparison_table(runs)
    assert "means over seeds" in text
    assert f"60.0 ± {100 * half(list(OLD['lwf'])):.1f}" in text
    lines = text.splitlines()
    assert len({len(line) for line in lines[2:]}) == 1
    beside = relative_table(rows)
    assert f"-2.0 ± {100 * half([-0.05, 0.0, -0.01]):.1f}" in beside
    assert "intransigence" in beside and "forward transfer" in beside
    assert "31 ± 2" in cost_table(rows)


def test_the_mean_matrix_leaves_out_what_was_not_measured(runs: list[dict[str, Any]]) -> None:
    method = methods_of(runs[3:6])[0]
    for one, value in zip(method.runs, (0.1, None, 0.3), strict=True):
        one["metrics"]["recall@1"]["matrix"][0][1] = value
    matrix = mean_report(method, "recall@1")["metrics"]["recall@1"]["matrix"]
    assert matrix[0] == [pytest.approx(0.9), pytest.approx(0.2)]
    assert matrix[1] == [pytest.approx(0.6), pytest.approx(0.88)]


def test_the_file_holds_every_seed_and_the_definitions_of_all_that_it_tells(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    write_comparison(runs, tmp_path, ["recall@1", "map"])
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert stored["metrics"] == ["recall@1", "map"]
    assert [(row["run"], row["metric"]) for row in stored["methods"]][:4] == [
        ("fine_tune", "recall@1"),
        ("lwf", "recall@1"),
        ("joint", "recall@1"),
        ("fine_tune", "map"),
    ]
    assert len(stored["runs"]) == 18
    one = next(row for row in stored["runs"] if row["run"] == "lwf-s2" and row["metric"] == "map")
    assert (one["method"], one["seed"], one["old"]) == ("lwf", 2, pytest.approx(0.275))
    told = {key for key, value in one.items() if isinstance(value, float)}
    assert told <= set(stored["definitions"])
    assert stored["definitions"]["recall@1"] == "A hit among the first k."
    assert "Student" in stored["definitions"]["interval"]


def test_the_page_holds_the_same_numbers(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    write_comparison(runs, tmp_path)
    source = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    text = "".join(Text(source).words)
    assert "3 methods, 9 runs" in text
    for words in (
        f"60.0 ± {100 * half(list(OLD['lwf'])):.1f}",
        f"−2.0 ± {100 * half([-0.05, 0.0, -0.01]):.1f}",
        f"50.0 ± {100 * half([0.5, 0.375, 0.625]):.1f}",
        "31 ± 2",
        "Student",
    ):
        assert words in text, words
    assert source.count("<svg") >= 3  # the mark of the page and two charts
    assert "#00fe" not in source


def test_a_page_of_runs_without_seeds_calls_them_runs(tmp_path: Path) -> None:
    write_comparison([run("fine_tune", 0), run("lwf", 0)], tmp_path)
    text = "".join(Text((tmp_path / "comparison.html").read_text(encoding="utf-8")).words)
    assert "2 runs" in text and "±" not in text.split("What the numbers mean")[0].replace("±0.0", "")


def test_a_metric_that_was_null_everywhere_is_shown_as_missing(tmp_path: Path) -> None:
    untrained = run("lwf", 0)
    untrained["metrics"]["top1"] = {"matrix": [[None, None], [None, None]]}
    write_comparison([untrained], tmp_path, ["top1"])
    assert json.loads((tmp_path / "comparison.json").read_text())["methods"][0]["old"] is None


def test_a_metric_that_a_run_lacks_and_no_runs_at_all_are_refused(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'fine_tune-s0' has no metric 'recall@3'; it has recall@1, map"):
        write_comparison(runs, tmp_path, ["recall@3"])
    with pytest.raises(DataError, match="no run to compare"):
        write_comparison([], tmp_path)


def test_the_job_prints_each_metric_and_writes_both_files(
    runs: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERDURE_RUNS", str(tmp_path))
    for one in runs:
        (tmp_path / one["name"]).mkdir()
        (tmp_path / one["name"] / "report.json").write_text(json.dumps(one))
    spec = importlib.util.spec_from_file_location("evaluate", ROOT / "jobs" / "evaluate.py")
    assert spec is not None and spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    job.main([*(one["name"] for one in runs), "--metric", "recall@1", "--metric", "map", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    for words in ("Recall@1 after the last task", "mAP after the last task", "beside the references", "Cost of training", "gap closed"):
        assert words in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"comparison.json", "comparison.html"}
