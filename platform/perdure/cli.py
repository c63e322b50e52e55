"""`perdure`: the operator's short commands. What a user can mend ends as one line on standard error and exit code 2."""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from perdure.config import load
from perdure.console import guarded
from perdure.errors import BadQuery, ConfigError, NotFound
from perdure.records import EncoderRef, Release, SegmentRef, Traffic
from perdure.registry import Registry, open_registry, release_to_plain
from perdure.settings import settings

# pipeline, report, index and retrieval are imported by the commands that need them: `perdure ls` should not wait for them.

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Search that learns without forgetting.")

RegistryOption = Annotated[
    str | None,
    typer.Option("--registry", help="Registry: a folder or s3://bucket/prefix; default: PERDURE_REGISTRY, else ./registry."),
]
ChannelOption = Annotated[str, typer.Option(help="Which pointer to move.")]
ReasonOption = Annotated[str, typer.Option(help="A word for the journal.")]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    try:
        return guarded(lambda given: app(args=given, prog_name="perdure"), arguments)
    except SystemExit as end:  # typer ends every command so, a good one too
        return end.code if isinstance(end.code, int) else 0


@app.command()
def check(
    config: Annotated[Path, typer.Argument(help="A run's YAML.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value ...")] = None,
) -> None:
    """Check a run's configuration without running it: shapes, names and options, all problems at once."""
    from perdure.checks import check as check_parts

    run = load(config, overrides)
    problems = check_parts(run)
    if problems:
        raise ConfigError(str(config), problems)
    print(
        f"{config}: run '{run.name}', {run.stream.dataset.name} / {run.encoder.name} / {run.strategy.name} / {run.index.policy}: in order"
    )


@app.command("ls")
def list_all(
    run: Annotated[str | None, typer.Argument(help="Only this run.")] = None,
    registry: RegistryOption = None,
) -> None:
    """List releases with their channels, encoders and segments."""
    opened = _open(registry)
    channels = opened.channels()
    releases = _table("release", "channel", "task", "policy", "encoder", "segments", "created")
    for release in opened.releases(run):
        on = ", ".join(name for name, held in channels.items() if held == release.id)
        releases.add_row(release.id, on, str(release.task), release.policy, str(release.encoder), _uses(release), release.created[:19])
    encoders = _table("encoder", "parent", "MiB", "created")
    for ref in opened.encoders(run):
        manifest = opened.manifest(ref)
        encoders.add_row(str(ref), manifest.meta["parent"] or "", _mib(manifest.files.values()), manifest.created[:19])
    segments = _table("segment", "made by", "MiB", "created")
    for ref in opened.segments(run):
        manifest = opened.manifest(ref)
        segments.add_row(str(ref), manifest.meta["made_by"], _mib(manifest.files.values()), manifest.created[:19])
    for table in (releases, encoders, segments):
        _console().print(table)


@app.command()
def show(
    ref: Annotated[str, typer.Argument(help="demo@v3 (a release), encoder/demo@v3 or segment/demo@v3.")],
    registry: RegistryOption = None,
) -> None:
    """Print everything that is known of one version, as JSON."""
    print(json.dumps(_describe(_open(registry), ref), indent=2, ensure_ascii=False))


@app.command()
def promote(
    release: Annotated[str, typer.Argument(help="For instance demo@v3.")],
    force: Annotated[bool, typer.Option("--force", help="Promote although a gate failed; the journal says so.")] = False,
    channel: ChannelOption = "live",
    reason: ReasonOption = "",
    share: Annotated[float, typer.Option(min=0, max=100, help="Of a candidate: percent of the requests that it answers.")] = 0.0,
    shadow: Annotated[float, typer.Option(min=0, max=100, help="Of a candidate: percent that are put to it as well.")] = 0.0,
    registry: RegistryOption = None,
) -> None:
    """Point a channel at a release; what serves the channel follows within seconds. `--channel candidate` puts it beside the live one."""
    if channel == "live" and (share or shadow):
        raise BadQuery("--share and --shadow are for --channel candidate; the live release gets what is left")
    opened = _open(registry)
    before = opened.channel(channel)
    after = opened.promote(release, channel, by="cli", force=force, reason=reason, traffic=Traffic(share, shadow))
    told = f", {share:g} % of the requests, {shadow:g} % as shadows" if share or shadow else ""
    print(f"{channel}: {before.id if before else 'nothing'} -> {after.id}{told}")


@app.command()
def rollback(channel: ChannelOption = "live", reason: ReasonOption = "", registry: RegistryOption = None) -> None:
    """Point a channel at the release that it held before."""
    opened = _open(registry)
    before = opened.channel(channel)
    after = opened.rollback(channel, by="cli", reason=reason)
    print(f"{channel}: {before.id if before else 'nothing'} -> {after.id}")


@app.command()
def journal(registry: RegistryOption = None) -> None:
    """List every move of every channel, oldest first."""
    table = _table("at", "channel", "action", "before", "release", "by", "user", "reason", "forced over")
    for entry in _open(registry).journal():
        columns = ("channel", "action", "before", "release", "by", "user", "reason")
        table.add_row(entry["at"][:19], *(entry[column] or "" for column in columns), "; ".join(entry["forced"]))
    _console().print(table)


@app.command()
def prune(
    after_hours: Annotated[float, typer.Option(help="How long a segment stays marked before it goes; at least 1.")] = 24.0,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be done.")] = False,
    registry: RegistryOption = None,
) -> None:
    """Delete what merges of written items left behind; marked now, gone with a call a day later. Safe beside writers and servers."""
    from perdure.registry.pruning import prune as pruned

    found = pruned(_open(registry), after=timedelta(hours=after_hours), dry_run=dry_run)
    would = "would be " if dry_run else ""
    print(f"{len(found.deleted)} segments of writes {would}deleted ({found.freed_bytes / 2**20:.1f} MiB), ", end="")
    print(f"{len(found.marked)} {would}marked as unused, {len(found.waiting)} marked before and not due yet")


@app.command()
def search(
    text: Annotated[str | None, typer.Option(help="Words to search by.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to search by.")] = None,
    id: Annotated[str | None, typer.Option(help="An item of the gallery to search by.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many hits.")] = 10,
    filter: Annotated[list[str] | None, typer.Option(help="field=value over texts and the task, or JSON; repeat it for several.")] = None,
    release: Annotated[str | None, typer.Option(help="Default: the live one.")] = None,
    registry: RegistryOption = None,
) -> None:
    """Search a release from here, without a server."""
    from perdure.retrieval import Query, Retriever
    from perdure.retrieval.edits import edited, release_at

    if image is not None and not image.is_file():
        raise BadQuery(f"no file '{image}' to search by")
    query = Query(text=text, image=image.read_bytes() if image else None, id=id)
    query.kind()
    chosen = _filter(filter or [])
    opened = _open(registry)
    found = release_at(opened, release) if release else edited(opened, opened.channel())
    if found is None:
        raise NotFound("no release is live; name one (--release demo@v1) or promote one (perdure promote demo@v1)")
    result = Retriever.load(opened, found).search(query, k, chosen)
    table = _table("", "score", "id", "label", "task", "encoder", "text", title=f"release {result.release}")
    for place, hit in enumerate(result.hits, start=1):
        table.add_row(str(place), f"{hit.score:.3f}", hit.id, hit.label, str(hit.task), hit.encoder, hit.text[0] if hit.text else "")
    _console().print(table)


@app.command()
def report(runs: Annotated[list[str], typer.Argument(help="Names of runs, their folders, or report.json files.")]) -> None:
    """Print the summary of a run, or a table of several."""
    from perdure.report import comparison_table, summary_table

    reports = [_report(run) for run in runs]
    print(summary_table(reports[0]) if len(reports) == 1 else comparison_table(reports)[1])


@app.command()
def plan(
    items: Annotated[int, typer.Option(help="N, size of the gallery.")],
    dim: Annotated[int, typer.Option(help="D, dimension of the embedding.")],
    kind: Annotated[str, typer.Option(help="flat, hnsw, binary or ivfpq.")] = "flat",
    node_memory_gib: Annotated[float, typer.Option(help="Memory of a node.")] = 16.0,
) -> None:
    """Say how many shards, how much memory and how many nodes a gallery of a given size needs."""
    from perdure.index.sizing import plan_gallery

    found = plan_gallery(items, dim, kind=kind, node_memory_gib=node_memory_gib)
    table = _table("", "", title=f"{found.items:,} items of D={found.dim}, {found.kind}")
    for name, value in (
        ("bytes a vector", f"{found.bytes_per_vector:,}"),
        ("vectors of one release", f"{found.vectors_gib:,.2f} GiB in all"),
        ("table of one release", f"{found.table_gib:,.2f} GiB on every node"),
        ("index.partitions", f"{found.partitions}"),
        ("shards = nodes", f"{found.nodes} of {found.node_memory_gib:g} GiB"),
        ("a shard, next release beside", f"{found.shard_gib:,.2f} GiB"),
    ):
        table.add_row(name, value)
    _console().print(table)


def _open(registry: str | None) -> Registry:
    return open_registry(registry or settings().registry or "registry")


def _describe(registry: Registry, ref: str) -> dict[str, Any]:
    """The plain data of a version of any kind; a release says on which channels it is."""
    kinds: dict[str, type[EncoderRef] | type[SegmentRef]] = {"encoder": EncoderRef, "segment": SegmentRef}
    kind = kinds.get(ref.partition("/")[0])
    if kind is None:
        release = registry.release(ref)
        return release_to_plain(release) | {"channels": [name for name, held in registry.channels().items() if held == release.id]}
    try:
        return registry.manifest(kind.parse(ref)).plain()
    except ValueError as error:
        raise BadQuery(str(error)) from None


def _filter(conditions: list[str]) -> dict[str, Any]:
    """`column=value` texts as a filter, a column given twice takes either value; or JSON, such as `{"price": {"lt": 20}}`."""
    equal: dict[str, list[Any]] = {}
    told: dict[str, Any] = {}
    for text in conditions:
        if text.lstrip().startswith("{"):
            try:
                told |= json.loads(text)
            except ValueError as error:
                raise BadQuery(f"--filter {text}: not JSON: {error}") from None
            continue
        column, equals, value = text.partition("=")
        if not equals:
            raise BadQuery(f"--filter {text}: expected column=value, or JSON")
        if column == "task" and not value.isdecimal():
            raise BadQuery(f"--filter {text}: a task is a number")
        equal.setdefault(column, []).append(int(value) if column == "task" else value)
    if equal.keys() & told.keys():
        raise BadQuery(f"--filter: {', '.join(sorted(equal.keys() & told.keys()))} as column=value and in JSON; choose one of them")
    return equal | told


def _report(run: str) -> dict[str, Any]:
    """The report.json of a run by its name, its folder or its path."""
    tried = [path for path in (Path(run), Path(run) / "report.json", settings().runs / run / "report.json") if path.suffix == ".json"]
    for path in tried:
        if path.is_file():
            try:
                return json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise NotFound(f"{path} is not a report: it is not JSON") from None
    raise NotFound(f"no report of run '{run}'; looked at {', '.join(map(str, tried))}. A run writes it when its stream is learned.")


def _uses(release: Release) -> str:
    told = [f"queried by v{use.queried_by.version}{', compensated' if use.compensated else ''}" for use in release.segments]
    return ", ".join(f"v{use.segment.version} ({words})" for use, words in zip(release.segments, told, strict=True))


def _mib(files: Any) -> str:
    return f"{sum(entry.bytes for entry in files) / 2**20:.2f}"


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=any(columns), pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _console() -> Console:
    """Standard output; wide where it is not a terminal, so that a pipe gets whole lines."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=200)


if __name__ == "__main__":
    sys.exit(main())
