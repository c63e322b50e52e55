"""The configuration of a run: shapes of its sections; names and options of parts are checked by `checks.py`.

One YAML per run, complete, opening with the command that runs it; `a.b=value` overrides; a misspelt key is an error with a
suggestion, and all errors of a file are reported at once.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from perdure.catalog import readable
from perdure.errors import ConfigError
from perdure.settings import refuse_credentials

__all__ = [
    "IndexConfig",
    "PartConfig",
    "RunConfig",
    "Section",
    "StreamConfig",
    "TrainConfig",
    "ValidationConfig",
    "WorkersConfig",
    "apply_override",
    "load",
    "parse",
    "put",
    "read_yaml",
]

_MOST_WORKERS = 1024


class Section(BaseModel):
    """What every section of a file is: no key that is not named here, and nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PartConfig(BaseModel):
    """A part by its name in a catalog, and its options, which the catalog checks."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="name in the catalog of this kind of part")

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class ValidationConfig(Section):
    """Measure on train items that are held out; no item of the test split, and of no class that is unseen, is read."""

    share: float = Field(default=0.2, gt=0, lt=1, description="of each class's train items, chosen by a hash of the id")
    tasks: int | None = Field(default=None, ge=1, description="only the first so many tasks are there; null = all")


class StreamConfig(Section):
    """A dataset, cut into tasks."""

    dataset: PartConfig = Field(default_factory=lambda: PartConfig(name="scenes"), description="where items come from")
    kind: PartConfig = Field(
        default_factory=lambda: PartConfig.model_validate({"name": "class_incremental", "first": 8, "step": 8}),
        description="how they are cut into tasks",
    )
    on_bad_item: Literal["stop", "skip"] = Field(
        default="stop", description="an image that cannot be read stops the run, or is skipped and counted"
    )
    gallery: Literal["test", "rest"] = Field(
        default="test", description="what is searched: the test items, each for the others; or the rest, all that are not tested on"
    )
    validation: ValidationConfig | None = Field(
        default=None, description="measure on held-out train items in place of the test split; what sweeps set (docs/how-to/tune.md)"
    )


class TrainConfig(Section):
    """One task's training."""

    epochs: int = Field(default=8, ge=0, description="passes over the task's data")
    first_epochs: int | None = Field(default=None, ge=0, description="the same for the first task; null = epochs")
    max_steps: int | None = Field(default=None, ge=1, description="stop a task early, for smoke tests")
    batch_size: int = Field(default=128, ge=2, description="B, over all workers together; a multiple of per_class")
    per_class: int = Field(default=4, ge=1, description="K of the P x K sampler: items of each class in a batch")
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate")
    first_lr: float | None = Field(default=None, gt=0, description="the same for the first task; null = lr")
    backbone_lr: float | None = Field(default=None, gt=0, description="the same for the image tower's trunk; null = as all else")
    first_backbone_lr: float | None = Field(default=None, gt=0, description="the same for the trunk and the first task; null = backbone_lr")
    optimizer: Literal["adamw", "adam", "sgd"] = Field(default="adamw", description="adam: weight decay as an L2 term of the gradient")
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    clip_norm: float | None = Field(default=None, gt=0, description="the gradient norm of each module that learns is clipped to this")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: channels_last and bf16 autocast where the hardware has it"
    )
    crop: int = Field(default=4, ge=0, description="random crop after padding by this many pixels, 0 = none")
    flip: bool = Field(default=True, description="random horizontal flip")
    checkpoint_every: int = Field(default=200, ge=0, description="steps between checkpoints, 0 = only at the end")
    log_every: int = Field(default=1, ge=1, description="steps between lines of the JSONL log")
    tensorboard: bool = False
    freeze_batch_norm: bool = Field(default=False, description="BatchNorm keeps its running statistics (always, first task included)")
    start_from: str | None = Field(
        default=None, description="name of a run with the same first task, whose first encoder is taken over instead of learned again"
    )

    @model_validator(mode="after")
    def _whole_classes(self) -> "TrainConfig":
        if self.batch_size % self.per_class or self.batch_size // self.per_class < 2:
            raise ValueError(f"batch_size={self.batch_size} must be per_class={self.per_class} times 2 classes or more")
        return self


class IndexConfig(Section):
    """How the gallery is indexed, and what happens to old items when a new encoder comes."""

    kind: Literal["flat", "hnsw", "binary", "ivfpq"] = Field(
        default="flat",
        description="exact search, a graph, exact search among the signs alone, or lists of compressed vectors that are compared again",
    )
    policy: Literal["reindex", "keep", "versioned", "backfilling"] = Field(
        default="reindex", description="DESIGN: what becomes of old vectors"
    )
    merge: Literal["auto", "standardised", "raw", "reciprocal_rank", "calibrated", "routed"] = Field(
        default="auto",
        description="how hits of several segments become one list; auto: routed where every vector is queried by its maker (policies "
        "versioned and backfilling), else standardised",
    )
    both: bool = Field(default=False, description="policies versioned, backfilling: store new items as older encoders make them, too")
    compensate: bool | Literal["bridge"] = Field(
        default=False, description="policy keep: take the mean drift of queries off a query to old vectors, or turn it back by a bridge"
    )
    partitions: int = Field(default=2, ge=1, le=4096, description="partitions of a segment, by a hash of the item id")
    hnsw_links: int = Field(default=32, ge=4, le=256, description="M of HNSW")
    ef_construction: int = Field(default=200, ge=8)
    ef_search: int = Field(default=64, ge=1)
    ivf_lists: int = Field(default=0, ge=0, le=2**20, description="lists of a partition of kind ivfpq; 0 = 4 sqrt(n)")
    ivf_probes: int = Field(default=32, ge=1, description="lists that a search reads")
    pq_bytes: int = Field(default=0, ge=0, le=4096, description="bytes of a compressed vector, a divisor of D; 0 = up to D / 4")
    rerank: int = Field(default=8, ge=1, le=1000, description="candidates that are compared exactly, for each hit")

    def merge_of_release(self) -> str:
        """What `merge` stands for under the policy."""
        return self.merge if self.merge != "auto" else "routed" if self.policy in ("versioned", "backfilling") else "standardised"

    def of_segment(self) -> dict[str, Any]:
        """How a segment is built; what only another kind reads is left out, so that it does not make the segment another one."""
        of_ivfpq = {"ivf_lists", "ivf_probes", "pq_bytes", "rerank"} if self.kind != "ivfpq" else set[str]()
        return self.model_dump(exclude={"policy", "merge", "compensate", "both", *of_ivfpq})

    @model_validator(mode="after")
    def _goes_together(self) -> "IndexConfig":
        if self.compensate and self.policy != "keep":
            raise ValueError(
                f"compensate={str(self.compensate).lower()} with policy={self.policy}: only under policy=keep does a newer encoder query "
                "old vectors; choose policy=keep, or leave out compensate"
            )
        learned = f"merge={self.merge}" if self.merge in ("calibrated", "routed") else "both=true" if self.both else None
        if learned is not None and self.policy not in ("versioned", "backfilling"):
            raise ValueError(
                f"{learned} with policy={self.policy}: it needs old vectors that are queried by the encoder that made them; "
                f"choose policy=versioned or backfilling, or leave out {learned.partition('=')[0]}"
            )
        return self


class GatesConfig(Section):
    """What a release may lose and still be promoted without --force; null records the figure and refuses nothing."""

    forgetting: float | None = Field(
        default=0.3, ge=0, le=1, description="of Recall@1 of an old task's test pictures among their own, beside the release before"
    )
    negative_flips: float | None = Field(
        default=None, ge=0, le=1, description="share of an old task's test pictures that were answered right before, and are not now"
    )
    approximate: float | None = Field(
        default=0.8, ge=0, le=1, description="least share of the exact 10 nearest that an approximate index (hnsw, ivfpq) must find"
    )


class WorkersConfig(Section):
    """How a run is spread; `workers: 2` is short for `workers: {num: 2}`, `[1, 4]` is elastic, and 0 is in-process, without Ray."""

    num: int | tuple[int, int] = Field(
        default=1, description="0 to 1024; [2, 8] is elastic: as many as there is room for, and the task goes on when that changes"
    )
    cpus: float = Field(default=1.0, gt=0, description="logical CPUs of each worker")
    gpus: float = Field(default=0.0, ge=0)
    threads: int | None = Field(default=None, ge=1, description="OMP_NUM_THREADS of each worker; null = cores of the node / workers")
    max_failures: int = Field(default=2, ge=0, description="worker or node deaths that a task survives")
    collective_timeout_s: float = Field(
        default=60.0,
        ge=1,
        description="a worker that keeps the others waiting in a step for so long counts as dead: all are replaced, and the task goes on "
        "from its last checkpoint; what lies between steps (decoding a cold cache, inversion, importances) has all the time it needs",
    )
    start_timeout_s: float = Field(default=900.0, gt=0, description="how long to wait for room for the workers, nodes being added included")

    @field_validator("num")
    @classmethod
    def _in_range(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(value, int) and not 0 <= value <= _MOST_WORKERS:
            raise ValueError(f"must be 0 (in-process) to {_MOST_WORKERS}")
        if isinstance(value, tuple) and not 1 <= value[0] <= value[1] <= _MOST_WORKERS:
            raise ValueError(f"must be [fewest, most], 1 to {_MOST_WORKERS}, for instance [1, 4]")
        return value

    @property
    def fewest(self) -> int:
        """How many a task needs at least; 0 is in-process."""
        return self.num if isinstance(self.num, int) else self.num[0]

    @property
    def most(self) -> int:
        """How many it may have."""
        return self.num if isinstance(self.num, int) else self.num[1]


class RunConfig(Section):
    """A whole run."""

    name: str = Field(
        default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="a re-run with the same name continues where it stopped"
    )
    seed: int = Field(default=0, ge=0)
    stream: StreamConfig = Field(default_factory=StreamConfig)
    encoder: PartConfig = Field(default_factory=lambda: PartConfig(name="small_resnet"))
    strategy: PartConfig = Field(default_factory=lambda: PartConfig(name="l2"))
    train: TrainConfig = Field(default_factory=TrainConfig)
    index: IndexConfig = Field(default_factory=IndexConfig)
    gates: GatesConfig = Field(default_factory=GatesConfig)
    workers: WorkersConfig = Field(default_factory=WorkersConfig)
    registry: str = Field(default="registry", description="folder of the registry, or s3://bucket/prefix")

    @field_validator("workers", mode="before")
    @classmethod
    def _plain_number(cls, value: Any) -> Any:
        plain = isinstance(value, list) or (isinstance(value, int) and not isinstance(value, bool))
        return {"num": value} if plain else value

    @field_validator("registry")
    @classmethod
    def _no_credentials(cls, value: str) -> str:
        """A config is saved with every run; pydantic's own error would show the value."""
        return refuse_credentials("registry", value)

    def plain(self) -> dict[str, Any]:
        """The resolved configuration as plain data, for manifests and reports."""
        return self.model_dump(mode="json")


_SECTIONS: dict[str, type[BaseModel]] = {
    "stream": StreamConfig,
    "train": TrainConfig,
    "index": IndexConfig,
    "gates": GatesConfig,
    "workers": WorkersConfig,
}


def load(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a run's YAML and apply `a.b=value` overrides (values are YAML: numbers, lists, true, null).

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value is out of range; all at once.
    """
    path = Path(path)
    return parse(read_yaml(path), overrides, source=str(path))


def parse(raw: Any, overrides: list[str] | None = None, *, source: str = "config") -> RunConfig:
    """Check plain data and overrides against the shape of a run; see `load`."""
    if not isinstance(raw, dict):
        raise ConfigError(source, [f"a run is a mapping of sections, found {type(raw).__name__}"])
    raw = _written_out(yaml.safe_load(yaml.safe_dump(raw)))  # a deep copy
    _name_parts(raw, overrides or [])
    problems = [problem for override in overrides or [] for problem in apply_override(raw, override)]
    config: RunConfig | None = None
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        problems += _readable(error)
    if config is None or problems:
        raise ConfigError(source, problems)
    return config


def read_yaml(path: Path) -> Any:
    """The plain data of a YAML file, {} of an empty one."""
    if not path.is_file():
        raise ConfigError(str(path), ["no such file; the ready-made configs are in jobs/configs/ and tune_configs/"])
    try:
        raw = _plain(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"not a YAML file: {error}"]) from None
    return {} if raw is None else raw


def _plain(text: str) -> Any:
    """What YAML text says; PyYAML has other errors than its own for what only looks like a date or a number (`2001-13-45`)."""
    try:
        return yaml.safe_load(text)
    except (ValueError, AttributeError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from None


def _written_out(raw: dict[str, Any]) -> dict[str, Any]:
    """`workers: 2` and `strategy: l2` written out in place, so that overrides can reach into them."""
    if isinstance(raw.get("workers"), int) and not isinstance(raw["workers"], bool):
        raw["workers"] = {"num": raw["workers"]}
    for holder, key in ((raw, "encoder"), (raw, "strategy"), (raw.get("stream"), "dataset"), (raw.get("stream"), "kind")):
        if isinstance(holder, dict) and isinstance(holder.get(key), str):
            holder[key] = {"name": holder[key]}
    return raw


def _name_parts(raw: dict[str, Any], overrides: list[str]) -> None:
    """A part that the file leaves out and an override reaches into (`strategy.weight=3`) is the default part."""
    defaults = RunConfig().plain()
    for section, key in (("encoder", None), ("strategy", None), ("stream", "dataset"), ("stream", "kind")):
        dotted = section if key is None else f"{section}.{key}"
        reached = any(override.startswith(f"{dotted}.") for override in overrides)
        holder = raw if key is None else raw.setdefault(section, {}) if reached else None
        if reached and isinstance(holder, dict):
            holder.setdefault(key or section, defaults[section] if key is None else defaults[section][key])


def apply_override(raw: dict[str, Any], override: str) -> list[str]:
    """Set what `a.b=value` says in place; a problem, if it has one."""
    dotted, equals, text = override.partition("=")
    if not equals or not all(dotted.split(".")):
        return [f"override '{override}': expected key.sub=value"]
    try:
        value = _plain(text)
    except yaml.YAMLError:
        return [f"override '{override}': the value is not YAML"]
    return [f"override '{override}': {problem}" for problem in put(raw, dotted, value)]


def put(raw: dict[str, Any], dotted: str, value: Any) -> list[str]:
    """Set one dotted key in place; a problem, if it has one."""
    *parents, last = dotted.split(".")
    place = raw
    for key in parents:
        inner = place.setdefault(key, {})
        if not isinstance(inner, dict):
            return [f"'{key}' is {inner!r}, which has no '{last}'"]
        place = inner
    place[last] = value
    _written_out(raw)
    return []


def _readable(error: ValidationError) -> list[str]:
    """Pydantic's problems with suggestions from the section in which the unknown key stands."""
    lines: list[str] = []
    for problem in error.errors():
        section = _SECTIONS.get(str(problem["loc"][0]), RunConfig) if len(problem["loc"]) > 1 else RunConfig
        known = section.model_fields
        single = ValidationError.from_exception_data("run", [_line(problem)])
        lines += readable(single, "", known)
    return lines


def _line(problem: Any) -> Any:
    """One of pydantic's problems in the form that `from_exception_data` takes."""
    if problem["type"] == "value_error":
        return {"type": "value_error", "loc": problem["loc"], "input": problem["input"], "ctx": {"error": problem["ctx"]["error"]}}
    return {"type": problem["type"], "loc": problem["loc"], "input": problem["input"], "ctx": problem.get("ctx", {})}
