"""Filters: functions that choose rows, made of expressions such as `"web" in Tags and Port != 80`.

What can be selected, and how it can be compared, follows from the type of the rows, a struct that is shown as JSON:
text is compared, searched (`in`) and matched, numbers and booleans are compared, lists and the keys of maps contain. A
selector that leads through a list of structs holds if it does for any of them. An expression becomes one function of a
row, made once and kept for the next that asks the same.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from homeport.client.core.errors import InvalidArgument
from homeport.client.core.patterns import Pattern
from homeport.registry.core.expressions import Every, Expression, Match, Not, Operator, Some, parse, wrong

Row = Any  # a value of the type that the filter was made for
Predicate = Callable[[Row], bool]

KEPT: Final = 256  # compiled expressions: programs ask the same few again and again
_HIDDEN: Final = frozenset({"CreateIndex", "ModifyIndex", "Definition"})  # shown in rows, not selectable in Consul


@functools.lru_cache(maxsize=KEPT)
def compiled(text: str, rows: type[msgspec.Struct]) -> Predicate:
    """The function that says whether a row, a `rows`, is one of those that `text` asks for.

    Raises:
        InvalidArgument: `text` is no expression, or not one about such rows; it says in which column.
    """
    return _predicate(parse(text), rows)


# --- binding to rows --------------------------------------------------------------------------------------------

_NEGATED: Final[dict[Operator, Operator]] = {
    "!=": "==",
    "not in": "in",
    "is not empty": "is empty",
    "not matches": "matches",
}
_HOLD_OF_NOTHING: Final = ("!=", "not in", "is empty", "not matches")  # what is not there is unequal to everything
_TEXT: Final = ("==", "in", "matches")
_SINGLE: Final = ("==",)
_MANY: Final = ("in", "is empty")
_EMPTY: Final = ("is empty",)


def _predicate(expression: Expression, rows: Any) -> Predicate:
    match expression:
        case Match():
            return _along(expression, rows, 0)
        case Not(operand):
            inner = _predicate(operand, rows)
            return lambda row: not inner(row)
        case Every(operands):
            every = tuple(_predicate(operand, rows) for operand in operands)
            return lambda row: all(predicate(row) for predicate in every)
        case Some(operands):
            some = tuple(_predicate(operand, rows) for operand in operands)
            return lambda row: any(predicate(row) for predicate in some)


def _along(match: Match, kind: Any, depth: int) -> Predicate:
    """The function of a value of this kind, of which the selector's names from `depth` on are still to be followed."""
    kind, element = _bare(kind)
    if depth == len(match.selector):
        return _leaf(match, kind, element)
    name = match.selector[depth]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = selectable(kind)
        field = fields.get(name)
        if field is None:
            raise wrong(f"no field {name!r}; allowed: {', '.join(sorted(fields))}", match.column)
        return _of_field(
            attrgetter(field.name), _along(match, field.type, depth + 1), match.operator in _HOLD_OF_NOTHING
        )
    if kind is dict:
        inner = _along(match, element, depth + 1)
        absent = match.operator in _HOLD_OF_NOTHING
        return lambda value: inner(value[name]) if name in value else absent
    if kind is list and _bare(element)[0] not in _COMPARED:
        inner = _along(match, element, depth)
        return lambda values: any(inner(value) for value in values)
    path = ".".join(match.selector[:depth])
    raise wrong(f"{path} has nothing within it", match.column)


def _of_field(get: Callable[[Row], Any], inner: Predicate, absent: bool) -> Predicate:
    """The same of a field's value; `absent` where there is none."""

    def predicate(row: Row) -> bool:
        value = get(row)
        return absent if value is None else inner(value)

    return predicate


def _leaf(match: Match, kind: Any, element: Any) -> Predicate:
    """The comparison itself."""
    path = ".".join(match.selector)
    operator = _NEGATED.get(match.operator, match.operator)
    if kind is str:
        allowed: tuple[str, ...] = _TEXT
    elif kind in _COMPARED:
        allowed = _SINGLE
    elif kind is dict or (kind is list and _bare(element)[0] in _COMPARED):
        allowed = _MANY
    elif kind is list:
        allowed = _EMPTY
    else:
        names = ", ".join(sorted(selectable(kind)))
        raise wrong(f"{path} is no value; select one of its fields: {names}", match.column)
    if operator not in allowed:
        negations = [negation for negation, of in _NEGATED.items() if of in allowed]
        raise wrong(
            f"{path} cannot be asked {match.operator!r}; allowed: {', '.join([*allowed, *negations])}", match.column
        )
    test = _test(match, operator, kind, element)
    return test if operator == match.operator else lambda value: not test(value)


def _test(match: Match, operator: str, kind: Any, element: Any) -> Predicate:
    if operator == "is empty":
        return lambda value: not value
    if operator == "matches":
        try:
            return Pattern(match.value).found_in
        except InvalidArgument as error:
            raise wrong(error.message, match.value_column) from None
    item = _bare(element)[0] if kind is list else kind
    wanted = _COMPARED[item](match) if item in _COMPARED else match.value
    if operator == "in":
        return lambda value: wanted in value
    return lambda value: bool(value == wanted)


def _integer(match: Match) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", match.value):
        raise wrong(f"{match.value!r} is no whole number", match.value_column)
    return int(match.value)


def _float(match: Match) -> float:
    if not re.fullmatch(r"[+-]?[0-9]{1,40}(\.[0-9]{1,40})?", match.value):
        raise wrong(f"{match.value!r} is no number", match.value_column)
    return float(match.value)


def _boolean(match: Match) -> bool:
    if match.value in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if match.value in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise wrong(f"{match.value!r} is neither true nor false", match.value_column)


_COMPARED: Final[Mapping[Any, Callable[[Match], Any]]] = {
    str: lambda match: match.value,
    int: _integer,
    float: _float,
    bool: _boolean,
}


@functools.cache  # of the handful of structs that are rows or stand in them
def selectable(struct: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    """The fields that selectors may name, by the name they have in JSON."""
    return {field.encode_name: field for field in msgspec.structs.fields(struct) if field.encode_name not in _HIDDEN}


def _bare(kind: Any) -> tuple[Any, Any]:
    """A type without its None, and what is in it if it is a list (or tuple) or a map: `list | dict | the type`."""
    options = [one for one in get_args(kind) if one is not type(None)] if get_origin(kind) not in _CONTAINERS else []
    if options and type(None) in get_args(kind) and len(options) == 1:
        kind = options[0]
    origin = get_origin(kind)
    if origin is Literal:
        return type(get_args(kind)[0]), None
    if origin is dict:
        return dict, get_args(kind)[1]
    if origin in (list, tuple):
        return list, get_args(kind)[0]
    return kind, None


_CONTAINERS: Final = (dict, list, tuple)
