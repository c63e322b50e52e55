"""Where we run, from the environment; what we run is in the config. The same YAML runs on a laptop and on Kubernetes.

PERDURE_REGISTRY   registry URL or folder, over the config's `registry`
PERDURE_RUNS       folder of run outputs (default: runs)
PERDURE_CACHE      folder of the decoded-image cache and of files fetched from S3 (default: ~/.cache/perdure)
PERDURE_STORAGE    s3://bucket/prefix or folder for Ray Train's checkpoints (default: the run's own folder, which every node must see)
PERDURE_KEYS       file with API keys; with it every route but health needs `Authorization: Bearer`
PERDURE_RAY        address of the Ray cluster (default: RAY_ADDRESS, else a local one)

S3 is reached as any AWS tool reaches it: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile, or a role), AWS_DEFAULT_REGION,
AWS_ENDPOINT_URL_S3. No URL of ours may carry a credential, since URLs are written into configs and logs.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import ConfigError

__all__ = ["Settings", "carries_credentials", "refuse_credentials", "refuse_fleeting", "settings"]

_FLEETING = "runtime_resources"  # below Ray's session folder: what jobs bring along, removed when no job needs it any more


@dataclass(frozen=True)
class Settings:
    """One reading of the environment."""

    registry: str | None
    runs: Path
    cache: Path
    storage: str | None
    keys: Path | None
    ray_address: str | None


def settings() -> Settings:
    """Read the environment now (never at import, so tests and jobs may set it)."""
    environment = os.environ
    keys = environment.get("PERDURE_KEYS")
    return Settings(
        registry=environment.get("PERDURE_REGISTRY"),
        runs=Path(environment.get("PERDURE_RUNS", "runs")),
        cache=Path(environment.get("PERDURE_CACHE", str(Path.home() / ".cache" / "perdure"))),
        storage=environment.get("PERDURE_STORAGE") or None,
        keys=Path(keys) if keys else None,
        ray_address=environment.get("PERDURE_RAY") or environment.get("RAY_ADDRESS"),
    )


def carries_credentials(url: str) -> bool:
    """Whether an S3 URL has room for a secret: a user, a colon, a query. Whoever refuses it shows none of it."""
    scheme, separator, rest = url.partition("://")
    authority = rest.partition("/")[0]
    return bool(separator) and scheme == "s3" and ("@" in authority or ":" in authority or "?" in rest or "#" in rest)


def refuse_credentials(source: str, url: str) -> str:
    """The URL itself, if it has no room for a secret.

    Raises:
        ConfigError: it has; the error does not show it.
    """
    if carries_credentials(url):
        raise ConfigError(source, ["an S3 URL is s3://BUCKET/PREFIX and no more; credentials belong into the environment"])
    return url


def refuse_fleeting(variable: str, place: Path) -> Path:
    """The folder itself, unless it lies in the copy of a working directory that Ray made for a submitted job and removes after it.

    Raises:
        ConfigError: it does; says which variable of the environment to set.
    """
    if _FLEETING in place.expanduser().absolute().parts:
        raise ConfigError(
            f"'{place}' under `ray job submit`",
            [f"the job's working directory is a copy that Ray removes; set {variable} to storage that stays (see jobs/runtime_env.yaml)"],
        )
    return place
