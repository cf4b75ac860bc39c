"""JSON in and out, for every front that speaks it: the only file of the registry that does.

Requests are read as Go reads them: the case of keys does not matter (nor do the underscores of Consul's older
spelling), null means "not given", unknown keys are skipped. Types are strict; what is wrong is said with its place.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar, get_args, get_origin

import msgspec

from homeport.client.core.wire import UNREADABLE
from homeport.registry.fronts.consul.answers import Refusal

T = TypeVar("T")

encode: Final = msgspec.json.Encoder().encode
_SHOUTED: Final = frozenset({"id", "http", "h2ping", "tcp", "udp", "ttl", "tls", "grpc", "os"})


_fields_of: Final[dict[type[Any], dict[str, msgspec.structs.FieldInfo]]] = {}  # by struct; there are a handful


def go_name(field: str) -> str:
    """A field's name in Consul's JSON: `service_id` is `ServiceID`. For `rename=` of the structs that are shown."""
    return "".join(word.upper() if word in _SHOUTED else word.capitalize() for word in field.split("_"))


def decode(kind: type[T], body: bytes) -> T:
    """Read a body as a `kind`, a struct whose field names were made by `go_name`.

    Raises:
        Refusal: 400; it is not JSON, or something in it has the wrong type.
    """
    try:
        return msgspec.convert(_folded(kind, msgspec.json.decode(body)), kind)
    except UNREADABLE as error:
        raise Refusal(400, f"Request decode failed: {error}") from None


def pretty(body: bytes) -> bytes:
    """The same JSON for people."""
    return msgspec.json.format(body, indent=4) + b"\n"


def _folded(kind: Any, value: Any) -> Any:
    """`value` with its keys spelt as `kind` spells them, all the way down, and without its nulls."""
    if isinstance(value, dict):
        struct = _struct_in(kind)
        if struct is None:
            inner = _inner(kind)
            return {key: _folded(inner, item) for key, item in value.items() if item is not None}
        fields = _fields(struct)
        folded: dict[str, Any] = {}
        for key, item in value.items():
            field = fields.get(key.lower().replace("_", ""))
            if field is not None and item is not None:
                folded[field.encode_name] = _folded(field.type, item)
        return folded
    if isinstance(value, list):
        inner = _inner(kind)
        return [_folded(inner, item) for item in value if item is not None]
    return value


def _fields(struct: type[Any]) -> dict[str, msgspec.structs.FieldInfo]:
    fields = _fields_of.get(struct)
    if fields is None:
        fields = {field.encode_name.lower(): field for field in msgspec.structs.fields(struct)}
        _fields_of[struct] = fields
    return fields


def _struct_in(kind: Any) -> type[Any] | None:
    """The struct that `kind` is, or that it is a union of None with."""
    candidates = () if get_origin(kind) in (dict, list, tuple) else (kind, *get_args(kind))
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, msgspec.Struct)), None)


def _inner(kind: Any) -> Any:
    """What the elements (of a list or tuple) or values (of a dict) of `kind` are."""
    args = get_args(kind)
    if get_origin(kind) is dict:
        return args[1]
    if get_origin(kind) in (list, tuple):
        return args[0]
    return Any
