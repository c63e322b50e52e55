"""The report page, the comparison and the terminal tables, on a report made by the real metrics from drifting random embeddings."""

import html
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageDraw

from perdure.errors import DataError
from perdure.metrics import continual
from perdure.metrics import retrieval as retrieval_metrics
from perdure.metrics.datasets import DATASET_DEFINITIONS, by_dataset
from perdure.report import Example, ReportPictures, comparison_table, summary_table, write_comparison, write_html, write_run_html
from perdure.report.classification import classification
from perdure.report.datasets import datasets
from perdure.report.figures import figures, named_figures

SHAPES = ("circle", "square", "triangle", "star")
TEXTURES = ("plain", "striped", "dotted")
COLOURS = ("#3b6fd4", "#d4503b", "#3ba36b", "#d4a63b", "#8a4fc7", "#e07fae")


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def picture(label, seed):
    """A small drawn PNG, so that the page looks like a page."""
    rng = np.random.default_rng(seed)
    sky = tuple(int(value) for value in rng.integers(150, 240, 3))
    image = Image.new("RGB", (48, 48), sky)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 34, 48, 48), fill=tuple(value - 60 for value in sky))
    x, y, r = int(rng.integers(15, 33)), int(rng.integers(17, 31)), int(rng.integers(9, 14))
    colour = COLOURS[int(rng.integers(len(COLOURS)))]
    shape = label.split()[1]
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "square":
        draw.rectangle((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "triangle":
        draw.regular_polygon((x, y, r + 2), 3, fill=colour)
    else:
        turns = np.arange(10) * np.pi / 5 - np.pi / 2
        reach = np.where(np.arange(10) % 2, (r + 3) * 0.45, r + 3)
        draw.polygon([(x + a * np.cos(t), y + a * np.sin(t)) for a, t in zip(reach, turns, strict=True)], fill=colour)
    if label.startswith("striped"):
        for line in range(-r, r, 5):
            draw.line((x + line, y - r, x + line, y + r), fill="white", width=1)
    elif label.startswith("dotted"):
        for dx in (-5, 1, 7):
            for dy in (-5, 1, 7):
                draw.ellipse((x + dx - 1, y + dy - 1, x + dx + 1, y + dy + 1), fill="white")
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def fake_run(name="demo", strategy="correlation", *, drift=0.35, noise=0.55, tasks=3, seed=0, unseen=None, text=True):
    """A report and the embeddings behind it: class centres, which every later task blurs for the classes it does not train."""
    rng = np.random.default_rng(7)
    labels_of = [f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES]
    per_task = len(labels_of) // 3
    labels = np.repeat(np.arange(per_task * tasks), 20)
    centres = rng.standard_normal((per_task * tasks, 24))
    own = rng.standard_normal((len(labels), 24))
    rng = np.random.default_rng(seed)
    names = [f"classes {per_task * t + 1}-{per_task * (t + 1)}" for t in range(tasks)]
    matrices: dict[str, list[list[float]]] = {}
    by_version = []
    for t in range(tasks):
        age = np.clip(t - labels // per_task, 0, None)
        spread = noise * (1 + drift * age) + 0.5 * (labels // per_task > t)
        vectors = unit(centres[labels] + (spread * 2.4)[:, None] * (0.8 * own + 0.6 * rng.standard_normal(own.shape)))
        captions = unit(vectors + 0.35 * (1 + drift * age)[:, None] * rng.standard_normal(own.shape) / 3)
        by_version.append(vectors)
        row: dict[str, list[float]] = {}
        for j in range(tasks):
            part = labels // per_task == j
            ids = np.flatnonzero(part)
            found = retrieval_metrics.retrieval_metrics(
                vectors[part], vectors[part], labels[part], labels[part], query_ids=ids, gallery_ids=ids
            )
            if text:
                pairs = retrieval_metrics.pair_metrics(captions[part], vectors[part], np.arange(part.sum()))
                found |= {f"t2i_{key}": value for key, value in pairs.items()}
            for key, value in found.items():
                row.setdefault(key, []).append(value)
        for key, values in row.items():
            matrices.setdefault(key, []).append(values)
    main = matrices["recall@1"]
    terms = {"triplet": 0.31, "cross_entropy": 2.2, "pairs": 0.42, "correlation": 0.11}
    curves = []
    for t in range(tasks):
        epochs = np.arange(12 if t == 0 else 8)
        used = {key: value for key, value in terms.items() if (key != "correlation" or (t and strategy == "correlation"))}
        curves.append(
            {
                key: [float(value * (0.25 + 0.9 * np.exp(-epoch / 3) + 0.02 * rng.random())) for epoch in epochs]
                for key, value in used.items()
            }
        )
    summary = continual.summarise(main, unseen)
    report = {
        "name": name,
        "config": {
            "name": name,
            "seed": seed,
            "stream": {"dataset": {"name": "scenes", "items": 3600}, "kind": {"name": "class_incremental", "first": 8, "step": 8}},
            "encoder": {"name": "small_resnet", "embedding_dim": 128},
            "strategy": {"name": strategy, "weight": 10.0},
            "index": {"kind": "flat", "policy": "reindex", "merge": "standardised"},
        },
        "definitions": {**retrieval_metrics.DEFINITIONS, **continual.DEFINITIONS},
        "tasks": [
            {"index": t, "name": names[t], "classes": labels_of[:per_task], "train": 960, "query": 240, "gallery": 240}
            for t in range(tasks)
        ],
        "metrics": {key: {"matrix": matrix} for key, matrix in matrices.items()},
        "summary": {"metric": "recall@1", **summary},
        "releases": [f"{name}@v{t + 1}" for t in range(tasks)],
        "search": {
            f"{name}@v{t + 1}": {"policy": "reindex", "merge": "standardised", "task": t, "search_recall@1": main[t][: t + 1]}
            for t in range(tasks)
        },
        "train": [
            {
                "task": t,
                "seconds": 41.3 - 9 * (t > 0),
                "images_per_s": 1312.0 - 40 * t,
                "steps": 96,
                "terms": {key: values[-1] for key, values in curves[t].items()},
                "curves": curves[t],
            }
            for t in range(tasks)
        ],
    }
    return report, by_version, labels, labels_of


def fake_pictures(run, beside=()):
    """Examples that are real neighbours in the fake embedding, and real Gram matrices."""
    report, by_version, labels, labels_of = run
    vectors = by_version[-1]
    examples = []
    for number, query in enumerate((5, 47, 140, 231)):
        scores = vectors @ vectors[query]
        scores[query] = -1
        hits = [
            {
                "id": f"scene-{row:04d}",
                "label": labels_of[labels[row] % len(labels_of)],
                "score": float(scores[row]),
                "encoder": f"encoder/{report['name']}@v3",
                "png": picture(labels_of[labels[row] % len(labels_of)], int(row)),
                "right": bool(labels[row] == labels[query]),
            }
            for row in np.argsort(-scores)[:8]
        ]
        label = labels_of[labels[query] % len(labels_of)]
        words = f"a {label} left of a red star in the snow"
        if number % 2:
            examples.append(Example("text", words, None, label, hits))
        else:
            examples.append(Example("image", label, picture(label, query), label, hits))
    some = np.sort(np.random.default_rng(0).permutation(len(labels))[:96])
    grams = {name: by_version[t][some] @ by_version[t][some].T for name, t in (("teacher", -2), ("student", -1))}
    return ReportPictures(examples, grams, list(beside))


@pytest.fixture(scope="module")
def run():
    return fake_run()


@pytest.fixture(scope="module")
def others():
    return [fake_run("plain", "fine_tune", drift=1.6)[0], fake_run("together", "joint", drift=0.05)[0]]


class Page(HTMLParser):
    """Collects tags, text and addresses, and fails on tags that do not close."""

    VOID = frozenset({"meta", "img", "br", "path", "rect", "circle", "use", "link"})

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.words, self.addresses = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style",):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def cells_of(source):
    """The text of every cell of every row of the tables of a page or a part of it."""
    rows = re.findall(r"<tr>(.*?)</tr>", source, re.DOTALL)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)] for row in rows]


def page_of(report, pictures, folder):
    write_html(report, pictures, folder / "report.html")
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_one_well_formed_file_that_loads_nothing_and_runs_nothing(run, others, tmp_path):
    page = page_of(run[0], fake_pictures(run, others), tmp_path)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.addresses
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(\s*['\"]?(?!#)", source), "only references inside the page"
    assert "@import" not in source
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_page_shows_every_number_of_the_main_matrix_and_the_summary(run, tmp_path):
    report = run[0]
    text = page_of(report, ReportPictures(), tmp_path).text
    for row in report["metrics"]["recall@1"]["matrix"]:
        for value in row:
            assert f"{100 * value:.1f}" in text
    for key in ("forgetting", "average_incremental", "last_average", "old", "new"):
        assert f"{100 * report['summary'][key]:.1f}" in text


def test_the_page_holds_every_section_definition_and_option(run, others, tmp_path):
    page = page_of(run[0], fake_pictures(run, others), tmp_path)
    for title in ("What it knows", "What it forgets", "What it finds", "How it learned", "Neighbourhoods", "What was released"):
        assert title in page.text
    assert run[0]["definitions"]["forgetting"] in page.text
    assert "embedding_dim: 128" in page.text
    assert "demo@v3" in page.text
    assert "left of a red star in the snow" in page.text
    assert page.tags.count("img") >= 4 * 8 + 2 + 3


def test_right_and_wrong_hits_are_marked_in_words_not_by_colour_alone(run, tmp_path):
    pictures = fake_pictures(run)
    source = page_of(run[0], pictures, tmp_path) and (tmp_path / "report.html").read_text(encoding="utf-8")
    hits = [hit for example in pictures.examples for hit in example.hits]
    assert source.count('title="right"') == sum(hit["right"] for hit in hits)
    assert source.count('title="wrong"') == sum(not hit["right"] for hit in hits)


def test_charts_take_their_colours_and_fonts_from_the_page(run, others, tmp_path):
    write_html(run[0], fake_pictures(run, others), tmp_path / "report.html")
    svg = "".join(re.findall(r"<svg.*?</svg>", (tmp_path / "report.html").read_text(encoding="utf-8"), re.DOTALL))
    assert "var(--c1)" in svg
    assert "#00fe" not in svg
    assert "DejaVu" not in svg


def test_what_a_dataset_says_cannot_become_markup(run, tmp_path):
    report = json.loads(json.dumps(run[0]))
    evil = "<script>alert(1)</script>\"'&"
    report["name"] = evil
    report["tasks"][0]["name"] = evil
    report["config"]["strategy"]["name"] = evil
    hit = {"id": evil, "label": evil, "score": 0.5, "encoder": evil, "png": None, "right": False}
    pictures = ReportPictures([Example("text", evil, None, evil, [hit])], {evil: np.eye(3)})
    page = page_of(report, pictures, tmp_path)
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text


@pytest.mark.parametrize("tasks", [1, 2, 3, 10])
def test_any_number_of_tasks_makes_a_page(tasks, tmp_path):
    run = fake_run(tasks=tasks, text=False)
    page = page_of(run[0], ReportPictures(), tmp_path)
    assert ("What it forgets" in page.text) == (tasks > 1)
    assert "no earlier task to forget" in page.text or tasks > 1


def test_what_was_not_measured_is_shown_as_missing_not_as_zero(run, tmp_path):
    report = json.loads(json.dumps(run[0]))
    matrix = report["metrics"]["recall@1"]["matrix"]
    matrix[0][1] = matrix[0][2] = None
    matrix[1][2] = float("nan")
    page = page_of(report, ReportPictures(), tmp_path)
    assert "nan" not in page.text.lower().split()
    assert "·" in page.text


def test_the_same_report_makes_the_same_bytes(run, others, tmp_path):
    for name in ("a", "b"):
        write_html(run[0], fake_pictures(run, others), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_run_folder_is_rendered_again_with_its_saved_pictures(run, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(run[0]))
    pictures = fake_pictures(run)
    pictures.save(tmp_path)
    loaded = ReportPictures.load(tmp_path)
    assert loaded.examples == pictures.examples
    assert all(np.allclose(loaded.grams[name], gram, atol=1e-6) for name, gram in pictures.grams.items())
    path = write_run_html(tmp_path)
    assert path == tmp_path / "report.html"
    assert "What it finds" in path.read_text(encoding="utf-8")


def test_a_run_folder_without_a_report_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"no report\.json"):
        write_run_html(tmp_path)


def test_comparison_has_gap_closed_and_kept_by_their_definitions(run, others):
    reports = [run[0], *others]
    rows, text = comparison_table(reports)
    method, finetune, joint = rows
    assert method["old"] == pytest.approx(np.mean(run[0]["metrics"]["recall@1"]["matrix"][-1][:2]))
    assert method["gap_closed"] == pytest.approx((method["old"] - finetune["old"]) / (joint["old"] - finetune["old"]))
    assert finetune["gap_closed"] == 0.0
    assert joint["gap_closed"] == 1.0
    diagonal = np.mean([others[0]["metrics"]["recall@1"]["matrix"][j][j] for j in range(2)])
    assert method["kept"] == pytest.approx((method["old"] - finetune["old"]) / (diagonal - finetune["old"]))
    assert f"{100 * method['gap_closed']:.1f}" in text
    assert all(name in text for name in ("demo", "plain", "together"))


def test_comparison_without_references_leaves_gap_closed_out(run):
    rows, text = comparison_table([run[0]])
    assert rows[0]["gap_closed"] is None
    assert rows[0]["kept"] is None
    assert "-" in text


def test_comparison_is_written_as_json_and_as_a_page(run, others, tmp_path):
    write_comparison([run[0], *others], tmp_path)
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["run"] for row in stored["runs"]] == ["demo", "plain", "together"]
    assert set(stored["definitions"]) >= {"old", "gap_closed", "kept"}
    page = Page((tmp_path / "comparison.html").read_text(encoding="utf-8"))
    assert "Gap closed" in page.text
    assert "svg" in page.tags


def test_summary_for_a_terminal_is_plain_text_with_the_matrix(run):
    text = summary_table(run[0])
    lines = text.splitlines()
    assert lines[0].startswith("Recall@1, percent")
    assert len({len(line) for line in lines[2:5]}) == 1, "columns line up"
    assert f"forgetting {100 * run[0]['summary']['forgetting']:.1f}" in text
    assert "demo@v1, demo@v2, demo@v3" in text


def test_a_report_without_any_number_is_refused(run):
    with pytest.raises(DataError, match="no metric that was measured"):
        summary_table({**run[0], "metrics": {}})


# Seen and unseen classes of datasets

SEEN = [[0.91, 0.12, 0.11], [0.72, 0.83, 0.13], [0.54, 0.65, 0.96]]
UNSEEN = [[0.61, 0.22, 0.21], [0.52, 0.43, 0.23], [0.34, 0.35, 0.76]]


def lifelong(strategy="dual", seen=SEEN, unseen=UNSEEN, names=("birds", "dogs", "cars"), **more):
    """The report of a stream of datasets, made by hand."""
    matrix = {"matrix": seen, "unseen": unseen}
    last = [value for value in unseen[-1] if value is not None]
    rows = by_dataset(names, "recall@1", seen, unseen)
    harmonic = [row["H"] for row in rows if row["after"] == len(seen) - 1 and row["H"] is not None]
    summary = continual.summarise(seen, float(np.mean(last)) if last else None)
    return {
        "name": strategy,
        "config": {"strategy": {"name": strategy}},
        "definitions": {**continual.DEFINITIONS, **DATASET_DEFINITIONS},
        "tasks": [{"name": name} for name in names],
        "metrics": {"recall@1": matrix},
        "summary": {
            "metric": "recall@1",
            **summary,
            "by_metric": {"recall@1": {**summary, "H_datasets": float(np.mean(harmonic)) if harmonic else None}},
        },
        "datasets": rows,
        **more,
    }


def test_datasets_are_a_table_with_a_row_after_each_task_and_three_columns_for_each_dataset():
    above, head, *body = cells_of(datasets([lifelong()]))
    assert above == ["", "birds", "dogs", "cars"]
    assert head == ["After", *(["seen", "unseen", "H"] * 3)]
    for t, (name, *cells) in enumerate(body):
        assert name == ("birds", "dogs", "cars")[t]
        for j in range(3):
            s, u = SEEN[t][j], UNSEEN[t][j]
            told = [f"{100 * value:.1f}" for value in (s, u, 2 * s * u / (s + u))]
            assert cells[3 * j : 3 * j + 3] == (told if j <= t else ["", "", ""]), "nothing is told of a dataset before it is learned"
    assert len(body) == 3


def test_the_section_of_datasets_says_what_seen_unseen_and_h_are_and_h_on_average(tmp_path):
    report = lifelong()
    page = page_of(report, ReportPictures(), tmp_path)
    assert "Seen and unseen classes" in page.text
    assert "classes of the same dataset that no task learns" in page.text
    assert "2 · seen · unseen / (seen + unseen)" in page.text
    mean = np.mean([2 * s * u / (s + u) for s, u in zip(SEEN[-1], UNSEEN[-1], strict=True)])
    assert f"after the last task it is {100 * mean:.1f} on average" in page.text
    assert f"Harmonic mean {100 * report['summary']['H']:.1f}" in page.text
    assert DATASET_DEFINITIONS["H matrix"] in page.text


def test_unseen_and_h_are_drawn_with_fine_tuning_dashed_where_it_was_run_beside():
    plain = lifelong("fine_tune", seen=[[0.9, 0.1, 0.1], [0.2, 0.9, 0.1], [0.1, 0.2, 0.9]])
    alone, beside = datasets([lifelong()]), datasets([lifelong(), plain])
    for source in (alone, beside):
        assert len(re.findall(r"<svg", source)) == 2
        for j, name in enumerate(("birds", "dogs", "cars")):
            s, u = SEEN[-1][j], UNSEEN[-1][j]
            for value in (u, 2 * s * u / (s + u)):
                assert re.search(rf">{name} +{100 * value:.1f}<", source.replace("\xa0", " ")), "each line is named with its last value"
    assert "dashed" not in alone and "stroke-dasharray" not in alone
    assert beside.count("dashed: fine-tuning") == 2 and "stroke-dasharray" in beside
    assert "dashed" not in datasets([lifelong(), {**plain, "datasets": []}]), "one that was cut otherwise has no such lines"


def test_the_dashed_lines_are_the_numbers_of_fine_tuning():
    """The solid line of a chart says where a number lies; the dashed one beside it has to lie there too."""
    lower = [[0.58, 0.2, 0.2], [0.31, 0.4, 0.2], [0.12, 0.15, 0.7]]
    charts = re.findall(r"<svg.*?</svg>", datasets([lifelong(), lifelong("fine_tune", unseen=lower)]), re.DOTALL)
    for svg, own, other in (
        (charts[0], UNSEEN, lower),
        (charts[1], *([[2 * s * row[0] / (s + row[0])] for (s, *_), row in zip(SEEN, u, strict=True)] for u in (UNSEEN, lower))),
    ):
        lines = re.findall(r'<path d="([^"]*)"[^>]*?style="([^"]*stroke: var\(--c1\)[^"]*)"', svg)
        heights = {"dasharray" in style: [float(y) for y in re.findall(r"[ML] [\d.-]+ ([\d.-]+)", d)] for d, style in lines[:2]}
        slope, start = np.polyfit(heights[False], [row[0] for row in own], 1)
        assert slope * np.array(heights[True]) + start == pytest.approx([row[0] for row in other], abs=2e-3)


def test_one_dataset_is_a_table_without_charts():
    source = datasets([lifelong(seen=[[0.9]], unseen=[[0.6]], names=("birds",))])
    assert cells_of(source)[2] == ["birds", "90.0", "60.0", "72.0"]
    assert "svg" not in source


def test_a_dataset_all_of_whose_classes_are_learned_has_dashes_in_its_columns():
    unseen = [[0.61, None, 0.21], [0.52, None, 0.23], [0.34, float("nan"), 0.76]]
    rows = cells_of(datasets([lifelong(unseen=unseen)]))
    assert rows[3][4:7] == ["83.0", "–", "–"]
    assert rows[4][4:7] == ["65.0", "–", "–"]


def test_there_is_no_section_of_datasets_where_nothing_unseen_was_measured(run, tmp_path):
    assert datasets([run[0]]) == ""
    assert datasets([lifelong(unseen=[[None] * 3] * 3)]) == "", "seen alone is the matrix, which is shown already"
    assert "Seen and unseen" not in page_of(run[0], ReportPictures(), tmp_path).text


def test_the_name_of_a_dataset_cannot_become_markup(tmp_path):
    page = page_of(lifelong(names=("<script>x</script>", "dogs", "cars")), ReportPictures(), tmp_path)
    assert "script" not in page.tags
    assert page.text.count("<script>x</script>") >= 3


# Classification


def classified(strategy, top1, **more):
    """A report with top-1 after each task; `more`: other names and their values."""
    rows = [{"task": t, "classes": 20 * (t + 1), "top1": value} for t, value in enumerate(top1)]
    for name, values in more.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    report = lifelong(strategy)
    return {**report, "summary": {**report["summary"], "top1_over_time": rows}}


def test_top_1_over_all_classes_so_far_is_a_table_with_a_row_after_each_task(tmp_path):
    report = classified("lwf", [0.77, 0.62, 0.53], top1_known_task=[0.78, 0.71, 0.69], top1_ncm=[0.74, None, float("nan")])
    assert cells_of(classification([report])) == [
        ["After", "Classes so far", "Top-1", "task known", "nearest class mean"],
        ["birds", "20", "77.0", "78.0", "74.0"],
        ["dogs", "40", "62.0", "71.0", "–"],
        ["cars", "60", "53.0", "69.0", "–"],
    ]
    assert "How it classifies" in page_of(report, ReportPictures(), tmp_path).text


def test_top_1_is_drawn_for_each_run_that_measured_it():
    runs = [classified("lwf", [0.77, 0.62, 0.53]), classified("fine_tune", [0.77, 0.4, 0.21]), lifelong("joint")]
    source = classification(runs)
    assert source.count("<svg") == 1
    named = re.findall(r">(\w+) +(\d+\.\d)</text>", source)
    assert sorted(named) == [("fine_tune", "21.0"), ("lwf", "53.0")]


def test_a_top_1_that_was_never_measured_has_no_column_and_none_at_all_no_section():
    nothing = [None, None, None]
    by_means = classified("l2", nothing, top1_known_task=nothing, top1_ncm=[0.7, 0.6, 0.5])
    assert cells_of(classification([by_means]))[0] == ["After", "Classes so far", "nearest class mean"]
    assert "Top-1, nearest class mean, over all classes" in classification([by_means])
    assert classification([classified("l2", nothing)]) == ""
    assert classification([lifelong()]) == ""


def test_top_1_after_one_task_is_told_without_a_chart():
    source = classification([classified("lwf", [0.77])])
    assert cells_of(source)[1:] == [["birds", "20", "77.0"]]
    assert "svg" not in source


# Figures by name


def test_every_figure_of_the_summary_that_shares_its_name_stands_beside_its_definition(run):
    matrix = run[0]["metrics"]["recall@1"]["matrix"]
    rows = {name: (points, text) for name, points, text in cells_of(figures([run[0]]))[1:]}
    assert set(rows) == {
        *("forgetting_max", "forgetting_first", "forgetting_mammoth", "forgetting_continuum"),
        *("backward_transfer", "backward_transfer_libcontinual"),
    }
    for name, (points, text) in rows.items():
        value = getattr(continual, name)(matrix)
        assert float(points.replace("−", "-")) == pytest.approx(100 * value, abs=0.051)
        assert html.unescape(text) == continual.DEFINITIONS[name]


def test_transfer_from_nothing_is_told_as_stored_and_intransigence_where_joint_training_was_run(run, others):
    report = {**run[0], "summary": {**run[0]["summary"], "by_metric": {"recall@1": {"forward_transfer": 0.123}}}}
    assert ["forward_transfer", "+12.3"] in [row[:2] for row in cells_of(figures([report]))]
    found, joint = run[0]["metrics"]["recall@1"]["matrix"], others[1]["metrics"]["recall@1"]["matrix"]
    value, text = named_figures([report, *others])["intransigence"]
    assert value == pytest.approx(np.mean([joint[t][t] - found[t][t] for t in range(3)]))
    assert text == continual.DEFINITIONS["intransigence"]
    assert "intransigence" not in named_figures([report, others[0]])


def test_a_definition_stands_on_the_page_once(run, others, tmp_path):
    for beside in ((), others):
        text = page_of(run[0], ReportPictures(beside=list(beside)), tmp_path).text
        for word, meaning in continual.DEFINITIONS.items():
            assert text.count(meaning) == 1, word


def test_a_figure_is_defined_as_its_own_report_says_and_by_todays_words_where_it_says_nothing(run):
    told = {**run[0], "definitions": {"forgetting_max": "In the words of that day."}}
    assert named_figures([told])["forgetting_max"][1] == "In the words of that day."
    assert named_figures([told])["forgetting_first"][1] == continual.DEFINITIONS["forgetting_first"]


@pytest.mark.parametrize(
    "missing", [(), ("definitions",), ("summary",), ("summary", "definitions", "tasks", "config", "releases", "train")]
)
def test_reports_from_before_datasets_classification_and_names_make_a_page(run, missing, tmp_path):
    report = {key: value for key, value in run[0].items() if key not in missing}
    text = page_of(report, ReportPictures(), tmp_path).text
    assert "What it knows" in text and "What it forgets" in text
    assert "Seen and unseen" not in text and "How it classifies" not in text
    assert continual.DEFINITIONS["forgetting_first"] in text
