"""What a filter says: conditions on the fields of items, all of which have to hold.

    {"label": "circle"}                         the value
    {"label": ["circle", "square"]}             any of the values; of `tags`, an item that has one of them
    {"price": {"gte": 10, "lt": 20}}            a range of numbers, or of texts by their code points (so dates as 2026-11-21 work)
    {"price": {"gte": 10, "not": [12, 13]}}     not: a value, any of several, or a range

Fields are id, label, group, task and tags, and whatever the items bring as payload. `not` is the exact complement: an item without the
field satisfies it, and no other condition. Segments of a release may differ in their fields; where one lacks a field, none of its
items has it. N rows of a segment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from perdure.catalog import did_you_mean
from perdure.errors import BadQuery

__all__ = ["MAX_CONDITIONS", "MAX_VALUES", "Columns", "FieldKind", "rows_that_pass"]

pc: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them

FieldKind = Literal["text", "number", "truth", "texts"]
MAX_CONDITIONS = 32  # fields of a filter
MAX_VALUES = 1024  # of one field

_BOUNDS = ("gt", "gte", "lt", "lte")
_NAMES = {"text": "a text", "number": "a number", "truth": "a truth value (true or false)", "texts": "a text"}
_LARGEST = 2**63  # what an int64 column can be compared with


class Columns(Protocol):
    """What a filter asks of a table."""

    def __len__(self) -> int: ...

    @property
    def fields(self) -> Mapping[str, FieldKind]:
        """The fields that can be filtered by, and what each holds."""
        ...

    def column(self, field: str) -> pa.Array:
        """(N,) values of a field, null where an item lacks it."""
        ...


@dataclass(frozen=True)
class _Condition:
    """One of `values`, or within all `bounds`; or just not."""

    field: str
    values: tuple[Any, ...] = ()
    bounds: tuple[tuple[str, Any], ...] = ()
    negated: bool = False


def rows_that_pass(tables: Sequence[Columns], filter: Mapping[str, Any]) -> list[NDArray[np.bool_]]:
    """(N,) for each of the tables of a release, which of its rows satisfy every condition of a filter.

    Raises:
        BadQuery: a field that no table has, a value of another type than the field's, a range over tags, more conditions or values than
            `MAX_CONDITIONS` and `MAX_VALUES`.
    """
    kinds: dict[str, set[FieldKind]] = {}
    for table in tables:
        for field, kind in table.fields.items():
            kinds.setdefault(field, set()).add(kind)
    if len(filter) > MAX_CONDITIONS:
        raise BadQuery(f"filter: conditions on {len(filter)} fields; at most {MAX_CONDITIONS} in one filter")
    conditions = [condition for field, asked in filter.items() for condition in _read(field, asked, kinds)]
    masks: list[NDArray[np.bool_]] = []
    for table in tables:
        mask = np.ones(len(table), np.bool_)
        for condition in conditions:
            held = _held(table, condition)
            mask &= ~held if condition.negated else held
        masks.append(mask)
    return masks


def _read(field: str, asked: Any, kinds: Mapping[str, set[FieldKind]]) -> list[_Condition]:
    """The conditions on one field."""
    if field not in kinds:
        raise BadQuery(f"filter: no column '{field}'; filter by {', '.join(kinds)}.{did_you_mean(field, list(kinds))}")
    if not isinstance(asked, Mapping):
        return [_Condition(field, values=_values(field, asked, kinds[field]))]
    bounds = {name: bound for name, bound in asked.items() if name != "not"}
    if not asked or not set(bounds) <= set(_BOUNDS):
        raise BadQuery(
            f"filter: {field}={_short(asked)}; expected a value, a list of values, a range ({', '.join(_BOUNDS)}) or 'not' and one of them"
        )
    found = [_range(field, bounds, kinds[field])] if bounds else []
    if "not" in asked:
        denied = asked["not"]
        if isinstance(denied, Mapping) and "not" in denied:
            raise BadQuery(f"filter: {field} has 'not' within 'not'; expected a value, a list of values or a range within it")
        found += [_Condition(one.field, one.values, one.bounds, negated=True) for one in _read(field, denied, kinds)]
    return found


def _values(field: str, asked: Any, kinds: set[FieldKind]) -> tuple[Any, ...]:
    values = tuple(asked) if isinstance(asked, list | tuple | set | frozenset) else (asked,)
    if len(values) > MAX_VALUES:
        raise BadQuery(f"filter: {field} with {len(values):,} values; at most {MAX_VALUES:,} for one field")
    if not all(_is_one(value, kinds) for value in values):
        wanted = " or ".join(sorted({_NAMES[kind] for kind in kinds}))
        raise BadQuery(f"filter: {field}={_short(asked)}; expected {wanted}, or a list of them")
    return values


def _range(field: str, bounds: Mapping[str, Any], kinds: set[FieldKind]) -> _Condition:
    ordered: set[FieldKind] = {kind for kind in kinds if kind in ("number", "text")}
    if not ordered:
        raise BadQuery(f"filter: {field}={_short(bounds)} is a range, but {field} has no order; expected a value or a list of values")
    if not all(_is_one(bound, ordered) for bound in bounds.values()) or len({_kind_of(bound) for bound in bounds.values()}) > 1:
        raise BadQuery(f"filter: {field}={_short(bounds)}; expected {' or '.join(sorted(_NAMES[kind] for kind in ordered))} for each bound")
    return _Condition(field, bounds=tuple(bounds.items()))


def _kind_of(value: Any) -> FieldKind | None:
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int | float):
        return "number" if -_LARGEST < value < _LARGEST else None  # so neither is NaN
    return "text" if isinstance(value, str) else None


def _is_one(value: Any, kinds: set[FieldKind]) -> bool:
    """Whether a value is one of a field of these kinds."""
    kind = _kind_of(value)
    return kind in kinds or (kind == "text" and "texts" in kinds)


def _held(table: Columns, condition: _Condition) -> NDArray[np.bool_]:
    """(N,) whether a row has the field, and it is as the condition says, `negated` aside."""
    none = np.zeros(len(table), np.bool_)
    kind = table.fields.get(condition.field)
    if kind is None:
        return none
    column = table.column(condition.field)
    if condition.bounds:
        fits = all(_kind_of(bound) == kind for _, bound in condition.bounds)
        return np.logical_and.reduce([_within(column, *bound) for bound in condition.bounds]) if fits else none
    values = [value for value in condition.values if _is_one(value, {kind})]
    if kind == "texts":
        has_it = _among(pc.list_flatten(column), values)
        none[pc.list_parent_indices(column).to_numpy()[has_it]] = True
        return none
    return _among(column, values)


def _among(column: pa.Array, values: Sequence[Any]) -> NDArray[np.bool_]:
    """(N,) whether a value is one of these; null is none of them."""
    if pa.types.is_integer(column.type):
        lowest, highest = (-(2**31), 2**31) if column.type == pa.int32() else (-_LARGEST, _LARGEST)
        values = [int(value) for value in values if value == int(value) and lowest <= value < highest]
    return pc.is_in(column, value_set=pa.array(values, type=column.type)).to_numpy(zero_copy_only=False)


def _within(column: pa.Array, name: str, bound: Any) -> NDArray[np.bool_]:
    """(N,) whether a value lies on the right side of a bound; null does not."""
    present = column.is_valid().to_numpy(zero_copy_only=False)
    if isinstance(bound, str):
        compare = {"gt": pc.greater, "gte": pc.greater_equal, "lt": pc.less, "lte": pc.less_equal}[name]
        return compare(column, pa.scalar(bound, pa.string())).fill_null(False).to_numpy(zero_copy_only=False)
    values = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    compare = {"gt": np.greater, "gte": np.greater_equal, "lt": np.less, "lte": np.less_equal}[name]
    return compare(values, bound) & present


def _short(value: Any) -> str:
    """A value in a message."""
    text = repr(dict(value)) if isinstance(value, Mapping) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
