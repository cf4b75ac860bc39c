"""The table as an OpenAPI 3.1 description, for whoever generates clients, forms or tests from one.

Only what is answered is described. A parameter that would be refused is left out, and so is an endpoint that is.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any, Final

import msgspec

from homeport.registry.fronts.consul.answers import JSON
from homeport.registry.fronts.consul.calls import STREAM, Endpoint, Kind, Parameter

OPENAPI: Final = "3.1.0"
_BINARY: Final = "application/octet-stream"
_TEXT: Final = "text/plain"
_REFERENCES: Final = "#/components/schemas/{name}"
_VARIABLE: Final = re.compile(r"\{([^}]*)\}")
_KINDS: Final[dict[Kind, dict[str, Any]]] = {
    "flag": {"type": "string", "enum": ["", "true", "1", "t", "false", "0", "f"]},
    "text": {"type": "string"},
    "texts": {"type": "array", "items": {"type": "string"}},
    "number": {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
    "duration": {"type": "string", "examples": ["10s", "1m30s", "500ms"]},
    "filter": {"type": "string", "examples": ['"v1" in Service.Tags', "Checks.Status == passing"]},
}
_REFUSED: Final = {
    "description": "Refused; the body says why.",
    "content": {_TEXT: {"schema": {"type": "string"}}},
}


def description(table: tuple[Endpoint, ...]) -> dict[str, Any]:
    """The document, ready to be encoded."""
    rows = [row for row in table if row.support != "refused"]
    types = list({kind: None for row in rows for kind in (row.takes, row.answers) if _is_json(kind)})
    schemas, components = msgspec.json.schema_components(types, schema_hook=_anything, ref_template=_REFERENCES)
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, schema_of)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "Homeport",
            "version": version("homeport"),
            "description": "Consul's HTTP API as this registry answers it. A variable at the end of a path takes the "
            "rest of it, slashes and all. Keys of a request's JSON match in any case.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "header": {"type": "apiKey", "in": "header", "name": "X-Consul-Token"},
                "bearer": {"type": "http", "scheme": "bearer"},
                "query": {"type": "apiKey", "in": "query", "name": "token"},
            },
        },
        "security": [{}, {"header": []}, {"bearer": []}, {"query": []}],
    }


def _operation(row: Endpoint, schema_of: dict[Any, Any]) -> dict[str, Any]:
    variables = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _VARIABLE.findall(row.path)
    ]
    asked = [_parameter(one) for one in row.parameters if one.support != "refused" and one.name != "token"]
    answers: dict[str, Any] = {str(status): _answer(row, status, schema_of) for status in row.statuses}
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{row.method.lower()}{row.path}").strip("_"),
        "summary": row.summary,
        "parameters": [*variables, *asked],
        "responses": {**answers, "default": _REFUSED},
    }
    if row.note:
        operation["description"] = row.note
    if row.takes is not None:
        content = {JSON: {"schema": schema_of[row.takes]}} if _is_json(row.takes) else {_BINARY: {}}
        operation["requestBody"] = {"content": content}
    if row.access == "open":
        operation["security"] = []
    return operation


def _parameter(one: Parameter) -> dict[str, Any]:
    shown = {"name": one.name, "in": "query", "required": False, "schema": _KINDS[one.kind]}
    if one.kind == "flag":
        shown["allowEmptyValue"] = True
    return shown | ({"description": one.note} if one.note else {})


def _answer(row: Endpoint, status: int, schema_of: dict[Any, Any]) -> dict[str, Any]:
    if _is_json(row.answers):
        content: dict[str, Any] = {JSON: {"schema": schema_of[row.answers]}}
    elif row.answers is bytes:
        content = {_BINARY: {}}
    else:
        content = {_TEXT: {"schema": {"type": "string"}}}
    if any(one.name in ("raw", "format") and one.support != "refused" for one in row.parameters):
        content.setdefault(_TEXT, {"schema": {"type": "string"}})
    shown: dict[str, Any] = {"description": "Done." if status == 200 else f"The answer, as status {status}."}
    if row.read:
        index = {"description": "The resource's index.", "schema": {"type": "integer", "minimum": 1}}
        shown["headers"] = {"X-Consul-Index": index}
    return shown | {"content": content}


def _anything(kind: type) -> dict[str, Any]:
    """The schema of what may be any JSON; whatever else has none is a mistake in the table."""
    if kind is object:
        return {"description": "any JSON"}
    raise NotImplementedError(kind)


def _is_json(kind: Any) -> bool:
    return kind is not None and kind is not bytes and kind != STREAM
