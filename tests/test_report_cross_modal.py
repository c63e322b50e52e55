"""The report's section on index policies across modalities: figures from the matrices alone, and nothing where there is no text."""

import re

import numpy as np
import pytest

from perdure.report.charts import drift_chart
from perdure.report.cross_modal import cross_modal
from perdure.report.sections import releases
from perdure.retrieval.cross_modal import POLICIES, SCOPES


def matrix(seed: int, tasks: int = 3) -> list[list[float | None]]:
    values = np.random.default_rng(seed).uniform(0.1, 0.8, (tasks, tasks)).round(3)
    return [[float(values[t, j]) if j <= t else None for j in range(tasks)] for t in range(tasks)]


def below(found: list[list[float | None]]) -> list[list[float | None]]:
    return [[value if j < t else None for j, value in enumerate(row)] for t, row in enumerate(found)]


def fake(tasks: int = 3) -> dict:
    policies: dict = {}
    for number, policy in enumerate(POLICIES):
        for at, scope in enumerate(SCOPES[: {"reindex": 2, "versioned": 4}.get(policy, 3)]):
            for way, direction in enumerate(("i2t", "t2i")):
                by_k = {f"recall@{k}": {"matrix": matrix(100 * number + 10 * at + 3 * way + k, tasks)} for k in (1, 5, 10)}
                policies.setdefault(policy, {}).setdefault(scope, {})[direction] = by_k
    drift = {
        modality: {figure: {"matrix": below(matrix(seed + at, tasks))} for at, figure in enumerate(("displacement", "cka"))}
        for seed, modality in ((500, "image"), (600, "text"))
    }
    return {"cross_modal": {"policies": policies, "drift": drift}}


def rows_of(page: str) -> list[list[str]]:
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page.split("<tbody>")[1])]
    return [[re.sub(r"<[^>]*>", "", cell) for cell in row] for row in rows]


def test_a_row_for_each_policy_has_the_means_over_the_tasks_after_the_last_one() -> None:
    report = fake()
    rows = rows_of(cross_modal(report))
    raw = "raw merge"
    assert [row[0] for row in rows] == ["Reindex", "Keep", raw, "Keep, compensated", raw, "Versioned", raw, "routed"]
    told = {row[0]: row[1:] for row in rows if row[0] != raw}
    policies = report["cross_modal"]["policies"]
    for title, policy in (("Reindex", "reindex"), ("Keep, compensated", "keep_compensated")):
        expected = [
            f"{100 * np.mean(policies[policy][scope][direction][f'recall@{k}']['matrix'][-1]):.1f}"
            for scope in ("known", "unknown")
            for direction in ("i2t", "t2i")
            for k in (1, 5, 10)
        ]
        assert told[title] == expected
    for row, policy, scope in ((2, "keep", "unknown_raw"), (-1, "versioned", "unknown_routed")):
        beside = rows[row][1:]
        assert beside[:6] == [""] * 6
        assert beside[6] == f"{100 * np.mean(policies[policy][scope]['i2t']['recall@1']['matrix'][-1]):.1f}"


def test_the_best_of_every_column_is_marked() -> None:
    page = cross_modal(fake())
    marked = re.findall(r'<td class="n best">([\d.]+)</td>', page)
    columns = list(zip(*(row[1:] for row in rows_of(page)), strict=True))
    best = [max(float(value) for value in column if value) for column in columns]
    assert len(marked) >= len(columns) == 12
    assert {f"{value:.1f}" for value in best} == set(marked)


def test_drift_of_both_modalities_is_drawn_over_the_tasks() -> None:
    page = cross_modal(fake())
    assert page.count("<svg") == 2 and "pictures" in page and "captions" in page
    assert "#00fe" not in page and "task 2" in page
    assert "<svg" not in cross_modal(fake(tasks=1)) and "Reindex" in cross_modal(fake(tasks=1))
    assert "9" in cross_modal(fake(tasks=9))


def test_a_policy_or_a_figure_that_was_not_measured_is_left_out() -> None:
    report = fake()
    del report["cross_modal"]["policies"]["keep_compensated"]
    for modality in ("image", "text"):
        report["cross_modal"]["drift"][modality]["cka"]["matrix"] = [[None] * 3] * 3
    page = cross_modal(report)
    assert "compensated" not in page and page.count("<svg") == 1
    report["cross_modal"]["policies"]["keep"]["known"]["t2i"]["recall@1"]["matrix"][-1] = [None, None, float("nan")]
    assert rows_of(cross_modal(report))[1][4] == "–"


@pytest.mark.parametrize("report", [{}, {"cross_modal": {}}, {"cross_modal": {"policies": {}}}])
def test_a_stream_without_text_has_no_such_section(report: dict) -> None:
    assert cross_modal(report) == ""


def test_a_chart_of_one_point_or_none_is_drawn() -> None:
    for values in ([None, 0.4], [None, None]):
        assert drift_chart([("pictures", values)]).startswith("<svg")


def test_a_release_that_compensates_is_told_apart() -> None:
    search = {
        f"demo@v{number}": {"policy": "keep", "merge": "raw", "task": 0, **more} for number, more in ((1, {}), (2, {"compensated": True}))
    }
    page = releases({"tasks": [{"name": "one"}], "releases": list(search), "search": search})
    assert "<td>keep</td>" in page and "<td>keep, compensated</td>" in page
