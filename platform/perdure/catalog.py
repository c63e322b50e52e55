"""Catalog: an explicit dict from a name to a constructor, whose signature is the schema of its options."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from perdure.errors import ConfigError

__all__ = ["Catalog", "did_you_mean", "readable"]

T = TypeVar("T")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion for a misspelt word: ` Did you mean 'supcon'?`, or nothing when no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def readable(error: ValidationError, at: str, known: Iterable[str] = ()) -> list[str]:
    """Pydantic's problems, one line each, with the dotted path of the option and a suggestion for unknown ones."""
    lines = []
    for problem in error.errors():
        path = ".".join([at, *map(str, problem["loc"])] if at else map(str, problem["loc"]))
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            word = str(problem["loc"][-1])
            lines.append(f"{path}: no such option.{did_you_mean(word, known)}")
        elif problem["type"] in ("missing", "missing_argument"):
            lines.append(f"{path}: this option is required")
        else:
            lines.append(f"{path}: {problem['msg']} (got {problem['input']!r})")
    return lines


class Catalog(Mapping[str, Callable[..., T]], Generic[T]):
    """Names of one kind of part: `Catalog("strategy", {"l2": L2Distillation})`.

    `build(name, options, **given)` checks the options against the constructor's keyword-only parameters and calls it. The parts
    that the pipeline supplies (`given`) are positional parameters of the constructor; what a config may say is keyword-only.
    """

    def __init__(self, kind: str, parts: Mapping[str, Callable[..., T]]) -> None:
        self.kind = kind
        self._parts = dict(parts)

    def __getitem__(self, name: str) -> Callable[..., T]:
        try:
            return self._parts[name]
        except KeyError:
            raise ConfigError(self.kind, [self.unknown(name)]) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def unknown(self, name: str) -> str:
        """The sentence for a name that is not in the catalog."""
        return f"no {self.kind} named '{name}'; known: {', '.join(sorted(self._parts))}.{did_you_mean(name, self._parts)}"

    def schema(self, name: str) -> type[BaseModel]:
        """The options of a part as a pydantic model, made from the keyword-only parameters of its constructor."""
        constructor = self[name]
        target = constructor.__init__ if inspect.isclass(constructor) else constructor
        hints = get_type_hints(target, include_extras=True)  # keeps the ranges of Annotated options
        fields: dict[str, Any] = {}
        for parameter in inspect.signature(constructor).parameters.values():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                default = ... if parameter.default is inspect.Parameter.empty else parameter.default
                fields[parameter.name] = (hints.get(parameter.name, Any), default)
        return create_model(f"{self.kind}:{name}", __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True), **fields)

    def problems(self, name: str, options: Mapping[str, Any], at: str = "") -> list[str]:
        """What is wrong with a name and its options, a line each; empty when nothing is."""
        if name not in self:
            return [f"{at + '.' if at else ''}name: {self.unknown(name)}"]
        schema = self.schema(name)
        try:
            schema.model_validate(dict(options))
        except ValidationError as error:
            return readable(error, at, schema.model_fields)
        return []

    def resolve(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with defaults filled in and types converted.

        Raises:
            ConfigError: an unknown name, an unknown or ill-typed option; all of them at once.
        """
        problems = self.problems(name, options)
        if problems:
            raise ConfigError(f"{self.kind} '{name}'", problems)
        schema = self.schema(name)
        checked = schema.model_validate(dict(options))
        return {field: getattr(checked, field) for field in schema.model_fields}

    def plain(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with defaults filled in, as plain data: what a manifest keeps, so that a later default changes no earlier run.

        Raises:
            ConfigError: as `resolve`.
        """
        self.resolve(name, options)
        return self.schema(name).model_validate(dict(options)).model_dump(mode="json")

    def build(self, name: str, options: Mapping[str, Any], *given: Any) -> T:
        """Construct a part from its name, its options (checked) and the positional parts that the caller supplies."""
        return self[name](*given, **self.resolve(name, options))
