"""The operator's commands, as a person types them: what they print, and one clean line with exit code 2 when something is wrong."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perdure.cli import main
from perdure.data.transforms import to_float
from perdure.encoders import build_encoder, save_encoder
from perdure.index import build_segment
from perdure.records import Item
from perdure.registry import open_registry
from perdure.retrieval import next_release

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)


def png(row: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[row]).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a registry: two releases of one small encoder, nothing live."""
    registry = open_registry(tmp_path / "registry")
    encoder = build_encoder("small_resnet", {"embedding_dim": 8, "image_size": 16, "width": 4}, with_text=True, seed=0)
    encoder.grow(num_classes=2, captions=["red circle"])
    save_encoder(encoder.eval(), tmp_path / "encoder")
    ref = registry.publish_encoder("demo", None, {path.name: path for path in (tmp_path / "encoder").iterdir()})
    items = [Item(f"item-{i}", "round" if i % 2 else "[square]", captions=(f"red circle {i}",)) for i in range(6)]
    vectors = encoder.embed_images(to_float(torch.from_numpy(PIXELS))).numpy()
    files = build_segment(vectors, items, task=[0, 0, 0, 1, 1, 1], folder=tmp_path / "segment", thumbnails=png)
    segment = registry.publish_segment("demo", None, files, made_by=ref)
    first = registry.publish_release(next_release("reindex", None, encoder=ref, segment=segment, id="demo@v1", run="demo", task=0))
    gates = [{"name": "forgetting of task 0", "found": 0.3, "limit": 0.1, "passed": False}]
    registry.publish_release(replace(first, id="demo@v2", task=1, parent="demo@v1", metrics={"gates": gates}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of one command."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error of a command that ends with 2."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and "Traceback" not in err
    return err


def test_a_day_of_an_operator(place: Path, capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(capsys, "ls")
    assert code == 0 and "demo@v1" in out and "encoder/demo@v1" in out and "segment/demo@v1" in out and "live" not in out
    assert run(capsys, "promote", "demo@v1", "--reason", "first") == (0, "live: nothing -> demo@v1\n", "")
    assert "forgetting of task 0: found 0.3, limit 0.1" in fails(capsys, "promote", "demo@v2")
    assert run(capsys, "promote", "demo@v2", "--force") == (0, "live: demo@v1 -> demo@v2\n", "")
    shown = json.loads(run(capsys, "show", "demo@v2")[1])
    assert shown["channels"] == ["live"] and shown["parent"] == "demo@v1"
    assert run(capsys, "rollback") == (0, "live: demo@v2 -> demo@v1\n", "")
    assert run(capsys, "promote", "release/demo@v1", "--channel", "candidate")[1] == "candidate: nothing -> demo@v1\n"
    lines = [line for line in run(capsys, "ls", "demo")[1].splitlines() if line.startswith("demo@v1")]
    assert "candidate, live" in lines[0]
    journal = run(capsys, "journal")[1]
    assert journal.count("promote") == 3 and journal.count("rollback") == 1 and "forgetting of task 0" in journal and "first" in journal


def test_show_prints_every_kind_as_json(place: Path, capsys: pytest.CaptureFixture[str]):
    assert json.loads(run(capsys, "show", "encoder/demo@v1")[1])["files"]["weights.safetensors"]["bytes"] > 0
    assert json.loads(run(capsys, "show", "segment/demo@v1")[1])["meta"] == {"made_by": "encoder/demo@v1"}
    assert json.loads(run(capsys, "show", "release/demo@v1")[1])["segments"][0]["queried_by"] == "encoder/demo@v1"


def test_search_by_text_picture_and_item(place: Path, capsys: pytest.CaptureFixture[str]):
    assert "no release is live" in fails(capsys, "search", "--text", "red")
    (place / "query.png").write_bytes(png(4))
    code, out, _ = run(capsys, "search", "--image", "query.png", "-k", "2", "--release", "demo@v1")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0 and rows[0] == ["release", "demo@v1"] and rows[2][:5] == ["1", "1.000", "item-4", "[square]", "1"] and len(rows) == 4
    run(capsys, "promote", "demo@v1")
    assert len(run(capsys, "search", "--text", "a red circle", "-k", "3")[1].splitlines()) == 5
    by_id = run(capsys, "search", "--id", "item-4")[1]
    assert "item-4 " not in by_id and len(by_id.splitlines()) == 7
    filtered = run(capsys, "search", "--id", "item-4", "--filter", "task=0", "--filter", "label=round")[1]
    assert [line.split()[2] for line in filtered.splitlines()[2:]] == ["item-1"]


def test_bad_requests_are_one_line(place: Path, capsys: pytest.CaptureFixture[str]):
    run(capsys, "promote", "demo@v1")
    (place / "empty.png").write_bytes(b"")
    (place / "words.png").write_text("text where a picture is expected")
    for arguments, message in (
        (["show", "demo@v9"], "no release 'demo@v9'; known: demo@v1, demo@v2"),
        (["show", "encoder/demo@v9"], "no encoder/demo@v9"),
        (["show", "encoder/demo"], "is not a reference to encoder"),
        (["show", "nonsense"], "is not the id of a release"),
        (["promote", "demo@v9"], "Did you mean 'demo@v"),
        (["rollback"], "nothing before it"),
        (["rollback", "--channel", "candidate"], "never set"),
        (["search"], "a query is text, image, both, or id"),
        (["search", "--text", "a", "--id", "item-1"], "has text and id"),
        (["search", "--text", "a", "-k", "0"], "k=0"),
        (["search", "--image", "missing.png"], "no file 'missing.png'"),
        (["search", "--image", "empty.png"], "empty"),
        (["search", "--image", "words.png"], "not an image"),
        (["search", "--id", "nobody"], "no item 'nobody'"),
        (["search", "--text", "a", "--filter", "label"], "expected column=value"),
        (["search", "--text", "a", "--filter", "task=one"], "a task is a number"),
        (["search", "--text", "a", "--filter", "lable=x"], "Did you mean 'label'"),
        (["search", "--text", "a", "--filter", '{"task": '], "not JSON"),
        (["search", "--text", "a", "--filter", '{"task": 1}', "--filter", "task=0"], "choose one of them"),
        (["report", "nobody"], "no report of run 'nobody'"),
        (["plan", "--items", "0", "--dim", "8"], "plan: items=0"),
        (["check", "missing.yaml"], "no such file"),
        (["ls", "--registry", "gs://bucket"], "gs:// is not supported"),
        (["ls", "--registry", "empty.png"], "is a file"),
    ):
        assert message in fails(capsys, *arguments), arguments


def test_the_registry_is_that_of_the_option_then_of_the_environment_then_here(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PERDURE_REGISTRY", str(place / "elsewhere"))
    assert "demo" not in run(capsys, "ls")[1]
    assert "demo@v1" in run(capsys, "ls", "--registry", str(place / "registry"))[1]
    assert not (place / "elsewhere").exists()  # looking creates nothing


def test_a_damaged_file_is_named(place: Path, capsys: pytest.CaptureFixture[str]):
    path = next((place / "registry").rglob("table.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "segment/demo@v1: file 'table.parquet' is damaged" in fails(capsys, "search", "--text", "a", "--release", "demo@v1")


def test_check_says_what_is_wrong_all_at_once(place: Path, capsys: pytest.CaptureFixture[str]):
    (place / "good.yaml").write_text("name: trial\nstrategy: correlation\n")
    code, out, _ = run(capsys, "check", "good.yaml", "train.epochs=1")
    assert code == 0 and "trial" in out
    (place / "bad.yaml").write_text("strategy: corelation\nencoder: {name: small_resnet, widht: 8}\n")
    message = fails(capsys, "check", "bad.yaml")
    assert "Did you mean 'correlation'" in message and "Did you mean 'width'" in message
    assert "train.epoch" in fails(capsys, "check", "good.yaml", "train.epoch=1")


def test_report_prints_one_run_or_a_table_of_several(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERDURE_RUNS", str(place / "runs"))
    for name, strategy, old in (("one", "correlation", 0.5), ("two", "fine_tune", 0.3)):
        (place / "runs" / name).mkdir(parents=True)
        report = {
            "name": name,
            "config": {"strategy": {"name": strategy}},
            "tasks": [{"index": 0, "name": "first"}, {"index": 1, "name": "second"}],
            "metrics": {"recall@1": {"matrix": [[0.6, None], [old, 0.4]]}},
            "summary": {"recall@1": {"old": old, "new": 0.4}},
        }
        (place / "runs" / name / "report.json").write_text(json.dumps(report))
    code, out, _ = run(capsys, "report", "one")
    assert code == 0 and "first" in out and "60.0" in out and "50.0" in out
    code, out, _ = run(capsys, "report", "runs/one", str(place / "runs" / "two" / "report.json"))
    assert code == 0 and "correlation" in out and "fine_tune" in out
    (place / "runs" / "one" / "report.json").write_text("{")
    assert "not JSON" in fails(capsys, "report", "one")


def test_plan_prints_shards_memory_and_nodes(capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(capsys, "plan", "--items", "10000000", "--dim", "128", "--kind", "hnsw")
    assert code == 0 and "shards = nodes" in out and "of 16 GiB" in out and "index.partitions" in out


def test_help_and_unknown_commands():
    """In a process of its own, as installed."""
    command = [sys.executable, "-m", "perdure.cli"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("check", "ls", "show", "promote", "rollback", "journal", "search", "report", "plan"))
    assert subprocess.run([*command, "promot"], capture_output=True, timeout=60).returncode == 2
