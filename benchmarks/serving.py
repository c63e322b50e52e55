"""The service, in both topologies, beside bare floors and what one would write first: how long a search takes, how many a second.

    python benchmarks/serving.py [--vectors 200000] [--rounds 3] [--seconds 3] [--rate 20] [--clients 16] [--out runs/serving.json]

Every arm does the same work: a text is embedded by the same Bi-LSTM, and its ten nearest among the same vectors (flat, 128 floats each) are
found. That all arms find the same is checked first. One thread a process for models and faiss.

in process          encoder and faiss, nothing around them: "the search itself"
FastAPI             the same behind a route of FastAPI, on uvicorn
empty Serve app     a route of FastAPI on Ray Serve that answers {}: what Serve costs
naive Serve graph   gateway -> encoder -> shard, three deployments; each request by itself, lists of numbers between them
fused               serve/fused.yaml with one gateway
fused, one by one   the same with max_batch 1: searches are not put together
sharded             serve/sharded.yaml with one gateway: an encoder and two shards

They run in three groups, one after the other, each of those that are compared with each other: a replica that idles wakes up many times a
second all the same, and on few cores a dozen of them would be what is measured. Inside a group all arms run at the same time and are asked
in turns, round after round. A round asks each arm twice. At a
fixed rate, whatever the answers take: requests begin at random times, the same ones for all arms, and a request's time counts from when it
should have begun. And with some clients that ask again as soon as they are answered, which shows the most that the arm can do. The client
is one process of its own, with connections that stay open. A figure is the median of the rounds, p99 is over all rounds.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # for `serve` and `benchmarks`

import numpy as np

from benchmarks.serving_parts.arms import Plain, check_same, make_gallery, running
from benchmarks.serving_parts.client import Load, client_process, scans, search_in_process
from benchmarks.serving_parts.report import Group, goals, print_report, write_report
from perdure.index import FlatPartition, limit_threads

GROUPS = (
    ("FastAPI", "empty Serve app", "fused"),
    ("empty Serve app", "sharded"),
    ("naive Serve graph", "fused, one by one", "fused"),
)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second, of the fixed load (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="of the full load (default: %(default)s)")
    parser.add_argument("--callers", type=int, default=32, help="of scans in this process (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/serving.json"), help="where the figures go, as JSON (default: %(default)s)")
    given = parser.parse_args()
    limit_threads(1)
    scanned: dict[str, list[float]] = {"one by one": [], "together": []}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, client_process() as asked:
        make_gallery(Path(folder), given.vectors)
        plain = Plain(Path(folder))
        vectors = np.load(Path(folder) / "vectors.npy")
        partition = FlatPartition(np.arange(len(vectors)), vectors)
        for _ in range(given.rounds):
            for name, together in (("one by one", 1), ("together", given.callers)):
                own = scans(partition, vectors[:1000], callers=given.callers, together=together, seconds=given.seconds / 4)
                scanned[name].append(own)
        groups: list[Group] = []
        for names in GROUPS:
            group = Group()
            with running(Path(folder), names) as arms:
                check_same(plain, arms)
                for turn in range(given.rounds):
                    group.fixed.setdefault("in process", []).append(search_in_process(plain, given.seconds, given.rate))
                    group.most.setdefault("in process", []).append(search_in_process(plain, given.seconds / 4))
                    for arm in arms:
                        group.fixed.setdefault(arm.name, []).append(asked(Load(arm.url, given.seconds, rate=given.rate, seed=turn)))
                    for arm in arms:
                        group.most.setdefault(arm.name, []).append(asked(Load(arm.url, given.seconds, clients=given.clients)))
            groups.append(group)
    reached = goals(groups, scanned)
    print_report(given, groups, scanned, reached)
    print(f"{time.monotonic() - began:.0f} s in all")
    write_report(given, groups, scanned, reached)


if __name__ == "__main__":
    main()
