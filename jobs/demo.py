"""The main job on the embedded data, start to end: `make demo`.

Three tasks of drawn scenes are learned on Ray Train, by L2 distillation and, beside it, by plain fine-tuning; indexed,
released, promoted; served by Ray Serve on 127.0.0.1:$PORT; searched by text and by picture over HTTP. Everything that was started is
stopped again.

    python jobs/demo.py [key.sub=value ...]      overrides of jobs/configs/scenes.yaml
"""

import argparse
import json
import logging
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this folder was first, where `import train` would be ours; `serve` is found from the one above

import httpx  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from perdure import report  # noqa: E402
from perdure.cluster.train import learn_with_ray, ray_cluster  # noqa: E402
from perdure.config import RunConfig, load, parse  # noqa: E402
from perdure.console import ConsoleProgress, guarded  # noqa: E402
from perdure.errors import PerdureError  # noqa: E402
from perdure.pipeline import learn_here  # noqa: E402
from perdure.registry import open_registry  # noqa: E402
from perdure.run import learn_stream  # noqa: E402
from perdure.settings import settings  # noqa: E402
from serve.run import start, stop  # noqa: E402
from serve.schemas import ServeArgs  # noqa: E402


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="jobs/demo.py", description="Learn, index, release, promote, serve and search the drawn scenes.")
    parser.add_argument("overrides", nargs="*", help="key.sub=value, over jobs/configs/scenes.yaml")
    given = parser.parse_args(arguments)
    port = int(os.environ.get("PORT", "8000"))
    _refuse_taken(port)
    config = load(ROOT / "jobs" / "configs" / "scenes.yaml", ["name=demo", "registry=runs/demo/registry", *given.overrides])
    beside = parse(
        {**config.plain(), "name": f"{config.name}-fine_tune", "strategy": _fine_tune(config)}, [f"train.start_from={config.name}"]
    )
    _start_over(config, beside)
    # Replicas import `serve.*` from the repository.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    progress = ConsoleProgress()
    learner = learn_with_ray if config.workers.num else learn_here
    with ray_cluster(config):
        result = learn_stream(config, learner=learner, progress=progress)
        progress.say("the same stream by plain fine-tuning, to see what would have been forgotten")
        fine_tuned = learn_stream(beside, learner=learner, progress=progress)
        progress.close()
        report.write_run_html(settings().runs / beside.name)
        page = report.write_run_html(settings().runs / config.name, beside=[fine_tuned])
        registry = open_registry(config.registry)
        live = registry.promote(result["releases"][-1], by="make demo", reason="end of the demo")
        progress.say(f"release {live.id} promoted: {len(live.segments)} segments, policy {live.policy}")
        running = start(ServeArgs(registry=config.registry, topology="fused"), port)
        try:
            progress.say(f"serving at {running.url}/")
            _search(running.url, page.parent)
        finally:
            stop(running)
    print(report.summary_table(result))
    for metric in ("recall@1", "t2i_recall@1"):
        print("", report.comparison_table([fine_tuned, result], metric)[1], sep="\n")
    print(f"report: {page}   search it yourself: make serve")


def _search(url: str, folder: Path) -> None:
    """Ask over HTTP, by text and by pictures of the gallery; print what came back."""
    table = Table(title="searches over HTTP: POST /v1/search")
    for column in ("query", "first hits (caption, score, encoder)", "release", "ms"):
        table.add_column(column)
    with httpx.Client(base_url=url, timeout=60) as client:
        examples = json.loads((folder / "examples.json").read_text())
        captions = [one["text"] for one in examples if one["kind"] == "text"][::2]
        for text in (*captions, "a striped blue circle left of a star"):
            answer = _ok(client.post("/v1/search", json={"text": text, "k": 10}))
            table.add_row(f'text "{text}"', _told(answer), answer["release"], f"{sum(answer['timings_ms'].values()):.1f}")
        for example in [one for one in examples if one["kind"] == "image"][::2]:
            hit = example["hits"][0]["id"]
            picture = client.get(f"/v1/items/{hit}/image").raise_for_status().content
            answer = _ok(client.post("/v1/search", files={"image": ("query.png", picture)}, data={"k": "5"}))
            if answer["hits"][0]["id"] != hit:
                raise PerdureError(f"a picture of the gallery ({hit}) did not find itself first, but {answer['hits'][0]}")
            table.add_row(
                f"picture of '{example['hits'][0]['label']}'", _told(answer), answer["release"], f"{sum(answer['timings_ms'].values()):.1f}"
            )
    Console().print(table)


def _ok(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != 200:
        raise PerdureError(f"{response.request.url} answered {response.status_code}: {response.text}")
    answer = response.json()
    if not answer["hits"]:
        raise PerdureError(f"{response.request.url} found nothing: {answer}")
    return answer


def _told(answer: dict[str, Any]) -> str:
    return "\n".join(f"{hit['text'] or hit['label']}  {hit['score']:.2f} {hit['encoder'].rpartition('@')[2]}" for hit in answer["hits"][:3])


def _fine_tune(config: RunConfig) -> dict[str, Any]:
    """Fine-tuning with the same ranking terms."""
    ranking = config.strategy.options.get("ranking")
    return {"name": "fine_tune", **({"ranking": ranking} if ranking else {})}


def _start_over(*configs: RunConfig) -> None:
    """The demo begins anew each time: its own two run folders and its own registry are removed."""
    for folder in [*(settings().runs / config.name for config in configs), Path(configs[0].registry)]:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_taken(port: int) -> None:
    """Before minutes of learning, not after."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PerdureError(f"port {port} of 127.0.0.1 is taken ({error.strerror}); choose another: PORT=8001 make demo") from None


if __name__ == "__main__":
    sys.exit(guarded(main))
