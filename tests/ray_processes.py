"""Processes that Ray started on this machine, as a fault test finds them: by what they call themselves and by whose they are."""

from pathlib import Path

__all__ = ["ray_processes"]


def ray_processes(name: str, of: int) -> list[int]:
    """The pids of Ray's worker processes of a name (`ray::RayTrainWorker...`) on the nodes that process `of` started."""
    parents: dict[int, int] = {}
    named: list[int] = []
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes()
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # no process, or one that has just ended
        if command.startswith(f"ray::{name}".encode()):
            named.append(int(folder.name))
    return [pid for pid in named if parents.get(parents.get(pid, 0)) == of]  # worker -> raylet -> who started the node
