"""Bring items from a file, or take items away, without a server; those that serve the registry show it within a poll.

    python jobs/write.py upsert items.jsonl [--channel live] [--batch 256]
    python jobs/write.py delete ids.txt

Items: one JSON object a line, or Parquet; see `perdure.retrieval.incoming`. Each batch is durable and visible as a whole; the same command
again leaves the same items, so one that was interrupted is simply run again. Exit status 2 when items were refused.
"""

import argparse
import sys
from pathlib import Path

from perdure.console import ConsoleProgress, guarded
from perdure.encoders import load_encoder
from perdure.errors import DataError, NotFound, PerdureError
from perdure.registry import open_registry
from perdure.retrieval.edits import edited, load_segments
from perdure.retrieval.incoming import batches, embed, read_ids, read_items
from perdure.retrieval.writes import Change, Outcome, Writer
from perdure.settings import settings


def main(arguments: list[str]) -> None:
    """The command line."""
    given = _parser().parse_args(arguments)
    registry = open_registry(given.registry or settings().registry or "registry")
    release = edited(registry, registry.channel(given.channel))
    if release is None:
        raise NotFound(f"channel '{given.channel}' points to no release to write over; promote one: perdure promote RELEASE")
    writer, segments, progress = Writer(registry, release.run), load_segments(registry, release, only=()), ConsoleProgress()

    def commit(change: Change) -> Outcome:
        (outcome,) = writer.commit(release, segments, [change])
        if isinstance(outcome, PerdureError):
            raise outcome
        return outcome

    done, refused, path = 0, dict[str, str](), Path(given.file)
    if given.action == "delete":
        ids = read_ids(path)
        outcomes = [commit(Change(removed=ids, by="job"))] if ids else []
        done, refused = len(ids), {name: why for outcome in outcomes for name, why in outcome.refused.items()}
    else:
        encoder = load_encoder(registry.folder(release.encoder))
        for some in batches(read_items(path), given.batch):
            new, bad = embed(release, encoder, some)
            outcome = commit(Change(new, by="job", refused=bad))
            refused |= outcome.refused
            done += len(some)
            progress.say(f"{done} items, edit {outcome.edit}")
    for item_id, why in refused.items():
        progress.say(f"refused '{item_id}': {why}")
    progress.say(f"{done - len(refused)} items {'deleted' if given.action == 'delete' else 'stored'}, {len(refused)} refused")
    if refused:
        raise DataError(f"{len(refused)} of {done} items were refused; the others are written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jobs/write.py", description="Bring items, or take items away.")
    parser.add_argument("action", choices=("upsert", "delete"))
    parser.add_argument("file", help="items (.jsonl or .parquet), or ids, one a line")
    parser.add_argument("--channel", default="live", help="over whose release; its newest encoder embeds the items")
    parser.add_argument("--batch", type=int, default=256, help="items that become visible together")
    parser.add_argument("--registry", default=None, help="where the registry is (default: PERDURE_REGISTRY, else ./registry)")
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
