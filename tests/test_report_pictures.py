"""The pictures of a report: what is drawn is what was given; missing, empty and old files; and the files of a wrong shape."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_report import Page, fake_pictures, fake_run, page_of, picture

from perdure.errors import DataError
from perdure.report import Change, Example, FeatureMap, Inversion, ReportPictures, write_run_html
from perdure.report.answers import answers
from perdure.report.charts import inversion_chart, plane_chart, png_uri, precision_recall_chart
from perdure.report.classes import classes
from perdure.report.inversions import inversions
from perdure.report.neighbourhoods import neighbourhoods
from perdure.report.thumbnails import encoded, thumbnail


@pytest.fixture(scope="module")
def run():
    return fake_run()


def hit(place, label, *, right, encoder="encoder/demo@v3", task=0):
    return {"id": f"i{place}", "label": label, "score": 1 - place / 10, "encoder": encoder, "png": None, "right": right, "task": task}


def hits(flags, wanted="cat", other="dog"):
    return [hit(place, wanted if right else other, right=right) for place, right in enumerate(flags, start=1)]


def feature_map(classes=("cat", "dog", "owl"), task_of=(0, 0, 2), each=5, encoders=("demo@v1", "demo@v3"), seed=0):
    rng = np.random.default_rng(seed)
    class_of = np.repeat(np.arange(len(classes)), each)
    points = rng.standard_normal((len(encoders), len(class_of), 2)).astype(np.float32)
    agreement = rng.random((len(encoders), len(classes))).round(3).tolist()
    return FeatureMap(np.arange(len(class_of)), class_of, list(classes), list(task_of), list(encoders), points, agreement)


def made_up(n=6, *, task=1, labels=None, curve=(8.0, 4.0, 2.0, 1.0), noise=True, size=8):
    rng = np.random.default_rng(task)
    images = rng.integers(0, 255, (n, size, size, 3), dtype=np.uint8)
    labels = np.arange(n) % 2 if labels is None else np.asarray(labels)
    return Inversion(task, images, labels.astype(np.int64), np.asarray(curve, np.float32), images[::-1].copy() if noise else None)


def keep(inversion, folder, **changes):
    path = folder / "tasks" / f"{inversion.task:03d}" / "inversion.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"images": inversion.images, "labels": inversion.labels, "curve": inversion.curve, "noise": inversion.noise, **changes}
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


# Reading numbers back from a drawing


def drawn_line(svg, colour):
    """(n, 2) page coordinates of the line of a colour."""
    found = re.search(rf'<path d="([^"]*)"[^>]*style="fill: none; stroke: {re.escape(colour)};[^"]*"', svg)
    assert found, f"no line in {colour}"
    return np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", found[1]), dtype=float)


def across(svg):
    """(ticks, 2) value and page coordinate of the labelled ticks below the plot."""
    texts = [(float(value), float(x), float(y)) for x, y, value in re.findall(r'<text[^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>(\d+)%<', svg)]
    lowest = max(y for _, _, y in texts)
    return np.array([(value, x) for value, x, y in texts if y > lowest - 2])


def upwards(svg, values):
    """(ticks, 2) the values, lowest first, and the page coordinates of their grid lines."""
    heights = re.findall(r'<path d="M [\d.]+ ([\d.]+)\s+L [\d.]+ \1\s*"[^>]*stroke: var\(--line\)', svg)
    lines = sorted({float(height) for height in heights}, reverse=True)
    assert len(lines) == len(values)
    return np.column_stack([values, lines])


def from_page(places, known):
    """Page coordinates to values, by two or more labelled ticks."""
    slope, start = np.polyfit(known[:, 1], known[:, 0], 1)
    return slope * places + start


def test_the_precision_recall_lines_are_the_numbers_given():
    recall, precision = [0.0, 0.25, 0.5, 1.0], [0.95, 0.8, 0.75, 0.4]
    svg = precision_recall_chart([(0, "birds", recall, precision), (2, "cars", [0.0, 1.0], [0.6, 0.1])])
    assert across(svg)[:, 0].tolist() == [0, 20, 40, 60, 80, 100]
    line = drawn_line(svg, "var(--c1)")
    assert from_page(line[:, 0], across(svg)) == pytest.approx(100 * np.array(recall), abs=0.1)
    assert from_page(line[:, 1], upwards(svg, [0, 20, 40, 60, 80, 100])) == pytest.approx(100 * np.array(precision), abs=0.1)
    assert len(drawn_line(svg, "var(--c3)")) == 2
    assert "birds" in svg and "cars" in svg


def test_points_of_a_curve_that_were_not_measured_are_left_out():
    svg = precision_recall_chart([(1, "birds", [0.0, 0.5, None, 1.0], [0.9, float("nan"), 0.5, 0.2])])
    assert len(drawn_line(svg, "var(--c2)")) == 2
    assert "nan" not in svg.lower()
    assert "<svg" in precision_recall_chart([(0, "empty", [None], [None])])


def test_the_inversion_curve_is_drawn_over_iterations_on_a_logarithmic_axis():
    losses = np.array([100.0, 10.0, 1.0, 0.1], np.float32)
    line = drawn_line(inversion_chart(losses), "var(--accent)")
    assert np.diff(line[:, 0]) == pytest.approx(np.diff(line[:, 0])[0], abs=1e-3), "iterations are equally far apart"
    assert np.diff(line[:, 1]) == pytest.approx(np.diff(line[:, 1])[0], abs=1e-3), "so are powers of ten"
    assert line[0, 1] < line[-1, 1], "a page counts from above: the loss falls"
    assert len(drawn_line(inversion_chart(np.array([3.0, 0.0, -1.0, np.nan, 2.0])), "var(--accent)")) == 2
    for odd in ([], [0.0], [5.0], [np.inf]):
        assert "<svg" in inversion_chart(np.array(odd))


def places_of(svg):
    """[(colour, is it a new class, (n, 2) places)] of every class on a map."""
    out = []
    for kind, colour, steps in re.findall(r'<path class="(old|new)" style="\w+:(var\(--c\d\))" d="([^"]*)"', svg):
        spots = np.array(re.findall(r"M([\d.-]+) ([\d.-]+)", steps), dtype=float).reshape(-1, 2)
        out.append((colour, kind == "new", spots + np.array([0, 5.1 if kind == "new" else 0])))
    return out


def test_a_map_shows_each_point_in_its_place_and_its_class_in_its_colour_and_mark():
    rng = np.random.default_rng(3)
    points, class_of = rng.standard_normal((40, 2)) * (3, 1) + 7, rng.integers(0, 3, 40)
    found = places_of(plane_chart(points, class_of, [False, True, False]))
    assert [(colour, new) for colour, new, _ in found] == [("var(--c1)", False), ("var(--c2)", True), ("var(--c3)", False)]
    places = np.concatenate([spots for _, _, spots in found])
    given = np.concatenate([points[class_of == label] for label in range(3)])
    scale = np.ptp(places[:, 0]) / np.ptp(given[:, 0])
    assert places - places.mean(axis=0) == pytest.approx((given - given.mean(axis=0)) * (scale, -scale), abs=0.11)
    assert places.min() >= 9 and places.max() <= 291


def test_a_map_of_equal_points_is_still_a_map():
    (_, _, spots) = places_of(plane_chart(np.zeros((4, 2)), np.zeros(4, dtype=int), [False]))[0]
    assert spots.tolist() == [[150.0, 150.0]] * 4


def test_a_change_is_drawn_light_where_there_is_none_and_in_two_colours_where_there_is():
    import base64

    uri = png_uri(np.array([[-0.5, 0.0, 0.5]]), -0.5, 0.5, change=True)
    less, none, more = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"), dtype=int)[0]
    assert none.min() > 235
    assert less[0] > less[2] + 50, "less is orange"
    assert more[2] > more[0] + 50, "more is blue"


# Queries and their hits


def test_a_query_is_shown_before_the_last_task_after_it_and_by_fine_tuning(run):
    report, beside = run[0], fake_run("plain", "fine_tune")[0]
    asked = Example("image", "a cat", b"x", "cat", hits([1, 1, 0, 1, 0, 0]), 0, hits([1, 1, 1, 1, 1, 0]))
    same = replace(asked, hits=hits([0, 0, 0, 0, 1, 0]), before=None)
    other = replace(asked, text="another cat", hits=hits([1] * 6))
    shown = ReportPictures([asked], beside=[beside], of_beside={"plain": ReportPictures([other, same])})
    rows = re.findall(r'<div class="answer">(.*?)</ol></div>', answers(report, shown), re.DOTALL)
    told = [" ".join(re.sub("<[^>]+>", " ", row.split("<ol>")[0]).split()) for row in rows]
    assert told == [
        "before task 3 5 of 6 right demo@v3",
        "correlation after task 3 3 of 6 right demo@v3",
        "fine-tuning after task 3 1 of 6 right",
    ]
    marks = [re.findall(r'<i class="mark" title="(\w+)">(.)</i>', row) for row in rows]
    assert [mark for mark, _ in marks[1]] == ["right", "right", "wrong", "right", "wrong", "wrong"]
    assert all({("right", "✓"), ("wrong", "✕")} >= set(row) for row in marks)
    assert [len(row) for row in marks] == [6, 6, 6]


def test_a_run_beside_that_was_not_asked_the_same_query_has_no_row(run):
    beside = fake_run("plain", "fine_tune")[0]
    asked = Example("image", "a cat", b"x", "cat", hits([1, 0]), 0)
    for kept in ({}, {"plain": ReportPictures()}, {"plain": ReportPictures([replace(asked, image=b"y")])}):
        html = answers(run[0], ReportPictures([asked], beside=[beside], of_beside=kept))
        assert html.count('class="answer"') == 1
        assert "fine-tuning" not in html and "before task" not in html


def test_words_find_their_own_picture_and_another_of_its_class_is_no_error(run):
    found = [hit(1, "cat", right=False), hit(2, "cat", right=True), hit(3, "dog", right=False)]
    html = answers(run[0], ReportPictures([Example("text", "a cat on a mat", None, "cat", found)]))
    assert "found at place 2" in html
    assert re.findall(r'<li class="(\w+)"', html) == ["near", "right", "wrong"]
    assert "“" not in html and "<blockquote>a cat on a mat</blockquote>" in html
    missed = answers(run[0], ReportPictures([Example("text", "a cat", None, "cat", found[::2])]))
    assert "not among 2" in missed


def test_hits_of_several_encoders_are_told_apart(run):
    found = [hit(1, "cat", right=True, encoder="encoder/demo@v1"), hit(2, "cat", right=True)]
    html = answers(run[0], ReportPictures([Example("image", "cat", None, "cat", found)]))
    assert "0.90 demo@v1" in html and "0.80 demo@v3" in html


def test_three_queries_are_open_and_the_others_folded(run):
    many = [Example("image", f"cat {number}", None, "cat", hits([1])) for number in range(5)]
    html = answers(run[0], ReportPictures(many))
    assert "2 more queries" in html
    assert html.split("<details>")[0].count('class="example"') == 3
    assert "<details>" not in answers(run[0], ReportPictures(many[:3]))


def test_what_the_last_task_changed_is_told_with_the_counts_behind_it(run):
    lost = Example("image", "cat", None, "cat", hits([0]), 1, hits([1]), "lost")
    html = answers(run[0], ReportPictures([lost], changes=[Change("image", 200, 150, 131, 29, 10)]))
    for part in ("Of 200 queries", "<b>75.0 %</b>", "<b>65.5 %</b>", "29 were lost", "10 were won", "lost most"):
        assert part in html
    assert "answered right at once." not in html.split("what the last task changed")[0], "a query chosen by its answer counts for nothing"


def test_no_queries_and_queries_without_hits_are_no_error(run):
    assert answers(run[0], ReportPictures()) == ""
    assert "0 of 0 right" in answers(run[0], ReportPictures([Example("image", "cat", None, "cat", [])]))
    assert "not among 0" in answers(run[0], ReportPictures([Example("text", "cat", None, "cat", [])]))


# Classes


def per_class(count):
    return [{"task": number % 3, "class": f"class {number:02d}", "recall@1": number / count, "queries": 30} for number in range(count)]


def bars(html):
    """[(title, width in percent, figure)] in order."""
    found = re.findall(r'<div class="classbar" title="([^"]*)">.*?width:([\d.]+)%;.*?<b>([\d.]+)</b>', html)
    return [(title, float(width), float(figure)) for title, width, figure in found]


def test_every_class_has_a_bar_of_its_recall_hardest_first(run):
    rows = per_class(10)
    found = bars(classes({**run[0], "per_class": rows[::-1]}))
    assert [title.split(",")[0] for title, _, _ in found] == [row["class"] for row in rows]
    assert [figure for _, _, figure in found] == pytest.approx([100 * row["recall@1"] for row in rows])
    widths = np.array([width for _, width, _ in found])
    assert widths == pytest.approx(widths[-1] / found[-1][2] * np.array([figure for _, _, figure in found]), abs=0.1)
    assert all("30 queries" in title for title, _, _ in found)


def test_of_many_classes_the_hardest_and_the_easiest_are_listed_and_all_are_averaged(run):
    html = classes({**run[0], "per_class": per_class(40)})
    names = [int(title.split(",")[0].split()[1]) for title, _, _ in bars(html)]
    assert names == [*range(8), *range(32, 40)]
    assert "24 classes between" in html and "40 classes, 48.8 % on average" in html


def test_classes_that_were_not_measured_are_counted_not_drawn(run):
    rows = per_class(4)
    rows[1]["recall@1"], rows[2]["recall@1"] = None, float("nan")
    html = classes({**run[0], "per_class": rows})
    assert len(bars(html)) == 2 and "2 classes have no query" in html
    assert "nan" not in html.lower()


def test_a_report_without_curves_and_classes_has_no_such_section(run, tmp_path):
    unmeasured = {"curves": [{"task": 0, "name": "birds", "recall": [None], "precision": [None]}], "per_class": [{"recall@1": None}]}
    for extra in ({}, {"curves": [], "per_class": []}, {"curves": None, "per_class": None}, unmeasured):
        assert classes({**run[0], **extra}) == ""
    assert "Easy and hard classes" not in page_of(run[0], ReportPictures(), tmp_path).text
    curves = [{"task": 0, "name": "birds", "recall": [0.0, 1.0], "precision": [1.0, 0.5]}]
    page = page_of({**run[0], "curves": curves, "per_class": per_class(3)}, ReportPictures(), tmp_path)
    assert "Easy and hard classes" in page.text and "birds" in page.text


# Neighbourhoods


def test_maps_are_named_by_task_with_the_share_of_same_class_neighbours_of_old_and_new_classes():
    kept = feature_map()
    html = neighbourhoods(ReportPictures(features=kept))
    assert html.count('class="plane"') == 2
    assert "after task 1" in html and "after task 3" in html
    for row in kept.agreement:
        assert f"{100 * np.mean(row[:2]):.1f} %" in html and f"{100 * row[2]:.1f} %" in html
    assert len(places_of(html)) == 2 * 3
    assert all(name in html for name in kept.classes)


def test_another_runs_map_is_beside_when_it_is_of_the_same_pictures():
    beside, kept = fake_run("plain", "fine_tune")[0], feature_map()
    other = feature_map(encoders=("plain@v1", "plain@v3"), seed=4)
    assert "fine-tuning, after task 3" in neighbourhoods(
        ReportPictures(features=kept, beside=[beside], of_beside={"plain": ReportPictures(features=other)})
    )
    for different in (replace(other, rows=other.rows + 1), replace(other, classes=["a", "b", "c"]), None):
        shown = ReportPictures(features=kept, beside=[beside], of_beside={"plain": ReportPictures(features=different)})
        assert "fine-tuning" not in neighbourhoods(shown)


def test_one_class_and_one_encoder_make_a_map():
    html = neighbourhoods(ReportPictures(features=feature_map(("cat",), (0,), encoders=("demo@v1",))))
    assert html.count('class="plane"') == 1
    assert "triangles" not in html and "tri" not in re.findall(r'<i class="(\w+)"', html)


def test_gram_matrices_are_lined_by_class_and_say_their_scales():
    teacher = np.array([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])
    student = teacher + np.array([[0.0, -0.2, 0.1], [-0.2, 0.0, 0.3], [0.1, 0.3, 0.0]])
    html = neighbourhoods(ReportPictures(grams={"teacher": teacher, "student": student}, gram_classes=["cat", "cat", "dog"]))
    scales = re.findall(r'class="ramp"><span>([^<]*)</span>.*?<span>([^<]*)</span>', html)
    assert scales == [("0.10", "1.00"), ("0.10", "1.00"), ("−0.30", "+0.30")]
    assert re.findall(r'<path d="([^"]*)"', html) == ["M2 0V3M0 2H3"] * 3
    assert "inside a class from <b>0.80</b> to <b>0.60</b>, between classes from <b>0.20</b> to <b>0.40</b>" in html
    assert f"moved by <b>{np.abs(student - teacher).mean():.3f}</b>" in html
    assert "sorted by class: cat, dog." in html


def test_gram_matrices_of_one_class_and_without_classes_are_shown_too():
    eye = np.eye(3)
    alone = neighbourhoods(ReportPictures(grams={"teacher": eye, "student": eye}, gram_classes=["cat"] * 3))
    assert "inside a class" in alone and "between classes" not in alone and "<path" not in alone
    old = neighbourhoods(ReportPictures(grams={"teacher": eye, "student": eye}))
    assert "inside a class" not in old and "sorted by class" not in old and old.count('class="gram"') == 3
    assert neighbourhoods(ReportPictures()) == ""


# Made-up pictures


def test_made_up_pictures_are_shown_by_class_with_their_curve(run):
    html = inversions(run[0], [made_up(9, labels=[0, 0, 0, 0, 0, 0, 0, 3, 99])])
    figures = re.findall(r'<figcaption title="([^"]*)">.*?</figcaption><div>(.*?)</div>', html)
    names = run[0]["tasks"][0]["classes"]
    assert [(name, row.count("<img")) for name, row in figures] == [
        ("from noise like this", 6),
        (names[0], 6),
        (names[3], 1),
        ("class 99", 1),
    ]
    assert "9 pictures of 3 classes." in html
    assert "8 to 1 in 4 iterations" in html
    assert run[0]["tasks"][1]["name"] in html


def test_the_pictures_of_the_grid_are_the_pictures_given(run):
    import base64

    given = np.zeros((2, 16, 16, 3), np.uint8)
    given[0, ..., 0] = given[1, ..., 2] = 230
    html = inversions(run[0], [replace(made_up(2, noise=False), images=given)])
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in re.findall(r"base64,([^\"]*)", html)]
    assert [image.shape for image in shown] == [(16, 16, 3)] * 2
    assert all(np.abs(image.astype(int) - expected).mean() < 8 for image, expected in zip(shown, given, strict=True))


def test_of_many_tasks_and_classes_some_are_shown_and_the_count_is_told(run):
    html = inversions(run[0], [made_up(24, task=task, labels=np.arange(24) % 12, noise=False, size=2) for task in range(1, 8)])
    assert re.findall(r"While learning ([^<]*)", html)[-1] == "task 8"
    assert html.count("While learning") == 4 and "Of 7 tasks, 4 are shown." in html
    assert "24 pictures of 12 classes; 8 classes are shown." in html


def test_groups_that_are_no_classes_get_no_names_of_classes(run, tmp_path):
    keep(made_up(2, labels=[0, 1]), tmp_path, named=np.array(False), noise=np.zeros((1, 8, 8, 3), np.uint8))
    (found,) = ReportPictures.load(tmp_path).inversions
    html = inversions(run[0], [found])
    assert "2 pictures of 2 groups." in html
    assert re.findall(r'<figcaption title="([^"]*)"', html) == ["from noise like this", "group 0", "group 1"]


def test_no_made_up_pictures_make_no_section_and_an_empty_curve_no_chart(run):
    assert inversions(run[0], []) == ""
    assert inversions(run[0], [made_up(0)]) == ""
    assert "<svg" not in inversions(run[0], [made_up(2, curve=())])


def test_made_up_pictures_are_read_from_the_folder_of_their_task(tmp_path):
    first, second = made_up(task=1), made_up(4, task=12, noise=False)
    keep(second, tmp_path)
    keep(first, tmp_path)
    found = ReportPictures.load(tmp_path).inversions
    assert [one.task for one in found] == [1, 12]
    for one, given in zip(found, (first, second), strict=True):
        assert np.array_equal(one.images, given.images) and np.array_equal(one.labels, given.labels)
        assert np.allclose(one.curve, given.curve)
    assert np.array_equal(found[0].noise, first.noise) and found[1].noise is None


@pytest.mark.parametrize(
    "changes",
    [
        {"curve": None},
        {"labels": np.arange(3)},
        {"images": np.zeros((6, 8, 8), np.uint8)},
        {"images": np.zeros((6, 8, 8, 3), np.float32)},
        {"noise": np.zeros((6, 4, 4, 3), np.uint8)},
        {"curve": np.zeros((2, 2))},
    ],
)
def test_made_up_pictures_of_another_shape_are_refused_with_what_was_found(tmp_path, changes):
    path = keep(made_up(), tmp_path, **changes)
    with pytest.raises(DataError, match=r"inversion\.npz: expected images \(n, H, W, 3\) uint8.*found "):
        Inversion.load(path)


# Folders


def test_everything_that_is_saved_is_loaded_again(run, tmp_path):
    before = [{**hit(1, "cat", right=True), "png": picture("plain star", 1)}]
    example = Example("image", "cat", picture("plain star", 2), "cat", before, 1, before, "won")
    given = ReportPictures(
        examples=[example],
        grams={"teacher": np.eye(3, dtype=np.float32)},
        gram_classes=["a", "b", "ç"],
        changes=[Change("image", 5, 4, 3, 2, 1)],
        features=feature_map(),
    )
    given.save(tmp_path)
    loaded = ReportPictures.load(tmp_path)
    assert loaded.examples == given.examples and loaded.changes == given.changes
    assert loaded.gram_classes == given.gram_classes and list(loaded.grams) == ["teacher"]
    assert loaded.features is not None and given.features is not None
    for name, value in vars(given.features).items():
        assert np.array_equal(getattr(loaded.features, name), value), name
    ReportPictures().save(tmp_path)
    assert ReportPictures.load(tmp_path).features is None, "what an earlier run left is not shown for this one"


def test_pictures_of_runs_beside_come_from_the_folders_beside(run, tmp_path):
    beside = fake_run("plain", "fine_tune")[0]
    asked = Example("image", "cat", b"x", "cat", hits([1, 1]), 0, hits([1, 1]))
    ReportPictures([asked]).save(tmp_path / "demo")
    ReportPictures([replace(asked, hits=hits([0, 0]))]).save(tmp_path / "plain")
    (tmp_path / "demo" / "report.json").write_text(json.dumps(run[0]))
    page = Page(write_run_html(tmp_path / "demo", beside=[beside]).read_text(encoding="utf-8"))
    assert "fine-tuning after task 3 0 of 2 right" in page.text
    for name in ("../plain", "missing", "demo", ""):
        loaded = ReportPictures.load(tmp_path / "demo", [{**beside, "name": name}])
        assert not any(kept.examples for kept in loaded.of_beside.values())


def test_a_folder_of_an_earlier_version_is_still_rendered(run, tmp_path):
    pictures = fake_pictures(run)
    pictures.save(tmp_path)
    kept = json.loads((tmp_path / "examples.json").read_text())
    for example in kept:
        for key in ("task", "before", "why"):
            example.pop(key)
    (tmp_path / "examples.json").write_text(json.dumps(kept))
    (tmp_path / "changes.json").unlink()
    (tmp_path / "report.json").write_text(json.dumps(run[0]))
    page = Page(write_run_html(tmp_path).read_text(encoding="utf-8"))
    assert "What it finds" in page.text and "Gram matrices" in page.text
    for title in ("before task", "Features before and after", "Easy and hard classes", "Pictures it made up", "what the last task changed"):
        assert title not in page.text


def test_a_whole_page_is_well_formed_loads_nothing_and_repeats_no_name(run, tmp_path):
    whole = replace(fake_pictures(run), features=feature_map(), inversions=[made_up()], changes=[Change("image", 5, 4, 3, 2, 1)])
    curves = [{"task": 0, "name": "birds", "recall": [0.0, 1.0], "precision": [1.0, 0.5]}]
    page = page_of({**run[0], "curves": curves, "per_class": per_class(3)}, whole, tmp_path)
    assert "script" not in page.tags
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    titles = ["What it knows", "What it finds", "Easy and hard classes", "Neighbourhoods", "How it learned", "Pictures it made up"]
    assert [page.text.rindex(title) for title in titles] == sorted(page.text.rindex(title) for title in titles)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    outside = re.sub(r"<defs>.*?</defs>", "", source, flags=re.DOTALL)
    names = re.findall(r'\bid="([^"]*)"', outside)
    assert len(names) == len(set(names))


def test_names_of_classes_cannot_become_markup(run, tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    kept = feature_map((evil, "dog", "owl"))
    report = json.loads(json.dumps(run[0]))
    report["tasks"][0]["classes"][0] = report["tasks"][1]["name"] = evil
    report["per_class"] = [{"task": 0, "class": evil, "recall@1": 0.5, "queries": 3}]
    report["curves"] = [{"task": 0, "name": evil, "recall": [0.0, 1.0], "precision": [1.0, 0.5]}]
    grams = {"teacher": np.eye(2), "student": np.eye(2)}
    page = page_of(report, ReportPictures(grams=grams, gram_classes=[evil, evil], features=kept, inversions=[made_up()]), tmp_path)
    assert "script" not in page.tags


# Thumbnails


def encoded_as(form, size=(640, 400), mode="RGB"):
    rng = np.random.default_rng(0)
    out = io.BytesIO()
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = rng.integers(0, 255, (size[1] // 8, size[0] // 8, channels), dtype=np.uint8).squeeze()
    Image.fromarray(pixels, mode).resize(size).save(out, form)
    return out.getvalue()


@pytest.mark.parametrize(("form", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "L")])
def test_a_large_picture_is_brought_to_the_size_at_which_it_is_shown(form, mode):
    shown = thumbnail(encoded_as(form, mode=mode))
    with Image.open(io.BytesIO(shown)) as image:
        assert (image.format, image.size) == ("WEBP", (160, 100))
        assert ("A" in image.getbands()) == (mode == "RGBA")


def test_what_is_no_picture_and_what_is_small_already_stays_as_it_is():
    assert thumbnail(b"no picture") == b"no picture"
    small = encoded(np.zeros((20, 30, 3), np.uint8))
    assert thumbnail(small) is small
    plain = io.BytesIO()
    Image.new("1", (2, 2)).save(plain, "PNG")
    assert len(thumbnail(plain.getvalue())) <= len(plain.getvalue())
