"""The OpenAPI description of the HTTP interface, made from the same table that reads the parameters."""

from __future__ import annotations

from typing import Any

from hasn_cli import __version__
from hasn_cli.serve.asking import GROUP, Asking, Parameter
from hasn_cli.serve.limits import Limits

_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "description": "the job's id"}
_GROUP = {"name": "group", "in": "path", "required": True, "schema": {"type": "string"}, "description": GROUP.meaning}
_KEEP = Parameter(str, "true: keep it until it expires", {"type": "boolean", "default": False})
_REFUSALS = {
    "400": "a parameter is wrong, or there is no picture",
    "401": "the token is missing",
    "403": "the request comes from another web page, or names another server",
    "408": "the upload took too long",
    "413": "the file is too large",
    "422": "the picture cannot be read, or the result cannot be made",
    "429": "the queue is full; Retry-After says when to try again",
    "504": "computing took too long",
    "507": "the server has no room",
}


def description(asking: Asking, limits: Limits) -> dict[str, Any]:
    """The description, version 3.1, as JSON-able values."""
    wishes = [_query(name, parameter) for name, parameter in asking.parameters().items()]
    group = _query("group", GROUP)
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    known = {"404": "there is no such job"}
    paths: dict[str, dict[str, Any]] = {
        "/upscale": {"post": _operation(
            "Upscale a picture, and get the result in the answer", wishes,
            _answer("200", "the result", {"*/*": _PICTURE}), _REFUSALS, body=True,
        )},
        "/jobs": {"post": _operation(
            "Put a picture into the queue", [*wishes, group], _answer("202", "the job", _json("Job")), _REFUSALS,
            body=True,
        )},
        "/jobs/{id}": {
            "get": _operation("What became of a job", [_ID], _answer("200", "the job", _json("Job")), known),
            "delete": _operation("Cancel a job, and delete its files", [_ID], _answer("204", "it is gone", {}), known),
        },
        "/jobs/{id}/events": {"get": _operation(
            "Server-sent events named `job`, each with the job as JSON, until it is over", [_ID],
            _answer("200", "the events", stream), known,
        )},
        "/jobs/{id}/result": {"get": _operation(
            "The result, which is deleted once it has been fetched, unless `keep` is true",
            [_ID, _query("keep", _KEEP)],
            _answer("200", "the result", {"*/*": _PICTURE}), {**known, "409": "it is not done"},
        )},
        "/jobs/{id}/preview/{which}": {"get": _operation(
            "The first frame or page of the input or the result, as a PNG",
            [_ID, {"name": "which", "in": "path", "required": True, "description": "which of them",
                   "schema": {"type": "string", "enum": ["input", "result"]}}],
            _answer("200", "the picture", {"image/png": _PICTURE}), {**known, "422": "there can be none"},
        )},
        "/groups/{group}/events": {"get": _operation(
            "Server-sent events named `job`, for all jobs of a group", [_GROUP],
            _answer("200", "the events", stream), {},
        )},
        "/groups/{group}/zip": {"get": _operation(
            "All results of a group as a ZIP archive", [_GROUP],
            _answer("200", "the archive", {"application/zip": _PICTURE}), {"404": "no picture of this group is done"},
        )},
    }  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hasn",
            "version": __version__,
            "summary": "Upscales pictures with the HASN network.",
            "description": f"A file may have {limits.upload} bytes. A result expires after {limits.keep:.0f} s.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Job": _JOB, "Error": _ERROR},
        },
    }


def _size(what: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2, "description": what}


_JOB = {
    "type": "object",
    "required": ["id", "name", "state", "progress"],
    "properties": {
        "id": {"type": "string"},
        "name": {"type": "string"},
        "state": {"type": "string", "enum": ["waiting", "running", "done", "failed", "cancelled"]},
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "size": _size("height and width of the input, once it is open"),
        "target_size": _size("height and width of the result, once the input is open"),
        "frames": {"type": "integer"},
        "format": {"type": "string"},
        "weights": {"type": "string", "description": "which weights were chosen and why, if that was left to hasn"},
        "seconds": {"type": "number", "description": "how long it took, when it is done"},
        "notices": {
            "type": "array",
            "items": {"type": "string"},
            "description": "what was lost or damaged",
        },
        "result": {"type": "string", "description": "where to fetch the result, when it is done"},
        "result_name": {"type": "string"},
        "type": {"type": "string", "description": "the media type of the result"},
        "bytes": {"type": "integer", "description": "length of the result"},
        "error": {"type": ["string", "null"]},
        "hint": {"type": ["string", "null"]},
    },
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "hint": {"type": ["string", "null"]}},
}


def _query(name: str, parameter: Parameter) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": parameter.meaning, "schema": parameter.schema}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _answer(status: str, meaning: str, content: dict[str, Any]) -> dict[str, Any]:
    return {status: {"description": meaning, **({"content": content} if content else {})}}


def _operation(
    summary: str,
    parameters: list[dict[str, Any]],
    answer: dict[str, Any],
    refusals: dict[str, str],
    *,
    body: bool = False,
) -> dict[str, Any]:
    errors = {status: {"description": meaning, "content": _json("Error")} for status, meaning in refusals.items()}
    operation: dict[str, Any] = {"summary": summary, "parameters": parameters, "responses": answer | errors}
    if body:
        form = {"schema": {"type": "object", "properties": {"picture": {"type": "string", "format": "binary"}}}}
        operation["requestBody"] = {
            "required": True,
            "description": "the picture's file; or a form with one file, whose other fields are parameters",
            "content": {"*/*": _PICTURE, "multipart/form-data": form},
        }
    return operation
