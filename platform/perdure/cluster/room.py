"""Room for workers: a run that can never be placed says so, where Ray Train would wait without end."""

import time
from collections.abc import Mapping

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from perdure.config import WorkersConfig
from perdure.errors import Unavailable
from perdure.progress import Progress

__all__ = ["wait_for_room"]

_QUIET_S = 10.0  # of waiting before a word is said of it


def wait_for_room(workers: WorkersConfig, progress: Progress) -> None:
    """Return when the cluster could place the fewest workers of a run now.

    What the workers need is asked for and given back, as a placement group: that is also what makes an autoscaler add nodes.

    Raises:
        Unavailable: there was no room for `workers.start_timeout_s`; says what was asked for and what the cluster has.
    """
    bundle = {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    group = placement_group([bundle] * workers.fewest, strategy="PACK")
    try:
        end = time.monotonic() + workers.start_timeout_s
        if group.wait(min(_QUIET_S, workers.start_timeout_s)):
            return
        asked = f"{workers.fewest} x {_told(bundle)}"
        progress.say(f"waiting for room for workers: {asked}; free now: {_told(ray.available_resources())}")
        while (left := end - time.monotonic()) > 0:
            if group.wait(min(left, 60.0)):
                return
        raise Unavailable(
            f"no room for the workers in {workers.start_timeout_s:g} s: asked for {asked}, the cluster has "
            f"{_told(ray.cluster_resources())} in all, {_told(ray.available_resources())} free. Lower workers.num or workers.cpus, add "
            "nodes, or wait longer with workers.start_timeout_s"
        )
    finally:
        remove_placement_group(group)


def _told(resources: Mapping[str, float]) -> str:
    amounts = [f"{resources.get(name, 0.0):g} {name}" for name in ("CPU", "GPU") if name == "CPU" or resources.get(name)]
    return " and ".join(amounts)
