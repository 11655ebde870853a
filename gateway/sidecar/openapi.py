"""The description of the HTTP API, made from its operations and their types (OpenAPI 3.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from types import UnionType
from typing import Any, Final, get_args

import msgspec

from gateway.sidecar.api import Operation

_REFERENCE: Final = "#/components/schemas/{name}"
_PARAMETER: Final = re.compile(r"\{(\w+)(?::[^{}]*)?\}")


class Refused(msgspec.Struct, frozen=True):
    """Every refusal: what is wrong (`err_msg` begins with the field, if it is one), and its request's id."""

    err_code: str
    err_msg: str
    request_id: str


def describe(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The whole document, as JSON would have it."""
    schemas, components = _schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        if operation.path.startswith("//"):
            continue  # the same again, for SDKs that are given a base URL with a slash at its end
        path = _PARAMETER.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Gateway", "version": version},
        "paths": paths,
        "components": {"schemas": components},
    }


def _schemas(operations: Iterable[Operation]) -> tuple[dict[Any, Any], dict[str, Any]]:
    types: list[Any] = [Refused]
    for operation in operations:
        parameters = (*operation.query.values(), *operation.headers.values())
        wanted = (*parameters, operation.body, *operation.answers.values())
        members = [member for kind in wanted if kind is not None for member in _members(kind)]
        types += [one for one in members if one not in types]
    found, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    return dict(zip(types, found, strict=True)), components


def _members(kind: Any) -> tuple[Any, ...]:
    """Those of a union, which msgspec would not have of several structs."""
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _schema(kind: Any, schemas: dict[Any, Any]) -> dict[str, Any]:
    found = [schemas[member] for member in _members(kind)]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _operation(operation: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", f"{operation.method.lower()}{operation.path}").strip("_")
    described: dict[str, Any] = {
        "operationId": name,
        "summary": operation.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _PARAMETER.findall(operation.path)
        ]
        + [
            {"name": name, "in": place, "schema": _schema(kind, schemas)}
            for place, named in (("query", operation.query), ("header", operation.headers))
            for name, kind in named.items()
        ],
        "responses": {
            str(status): _answer(status, kind, schemas) for status, kind in operation.answers.items()
        }
        | {"default": _answer(None, Refused, schemas)},
    }
    content: dict[str, Any] = {media: {} for media in operation.media}
    if operation.body is not None:
        content["application/json"] = {"schema": _schema(operation.body, schemas)}
    return described | ({"requestBody": {"content": content, "required": True}} if content else {})


def _answer(status: int | None, kind: Any, schemas: dict[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(status).phrase if status else "Refused"}
    if kind is not None:
        answer["content"] = {"application/json": {"schema": _schema(kind, schemas)}}
    return answer
