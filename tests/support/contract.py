"""Holds responses against `openapi.json`: status, content type, headers, body, and the events of a stream.

Stricter than the document in one way: an object with a field that the document doesn't name is an error, unless its
schema says `additionalProperties`.
"""

import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]

from tests.support.relay import Relay, serving
from tests.support.sse import Block, Parser
from tests.support.upstream import ScriptedUpstream

Json = dict[str, Any]

DOCUMENT: Json = json.loads(Path(__file__).parents[2].joinpath("openapi.json").read_text(encoding="utf-8"))
METHODS = ("get", "post", "put", "patch", "delete")
PROBLEM: Json = {
    "headers": {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}},
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


@contextlib.asynccontextmanager
async def checked(upstream: ScriptedUpstream, **settings: Any) -> AsyncIterator[Relay]:
    """A relay of whose responses each is held against the document."""
    async with serving(upstream, **settings) as relay:
        relay.client.event_hooks = {"response": [_is_documented]}
        yield relay


async def _is_documented(response: httpx.Response) -> None:
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        await response.aread()
    request = response.request
    if not (request.method == "OPTIONS" and response.is_success):  # a preflight: the document doesn't speak of CORS
        check_response(request.method, request.url.path, response)


def check_response(method: str, url_path: str, response: httpx.Response) -> None:
    """Assert that the document promises this answer to `method` on `url_path`; a query in the path is ignored.

    A path that isn't in the document must be answered with a 404 problem, a method that the path hasn't with a 405 and
    `Allow`, unless the caller was refused before. A HEAD is answered as a GET without a body. The body of a stream
    that hasn't been read is not looked at.
    """
    documented = _documented(method.lower(), url_path.partition("?")[0])
    status = str(response.status_code)
    assert status in documented, f"{method} {url_path}: {status} isn't documented, only {', '.join(documented)}"
    promised = resolved(documented[status])
    is_head = method.upper() == "HEAD"
    _check_headers(promised, response, required=not is_head)
    if is_head:
        assert not _body(response), f"a HEAD was answered with a body: {_body(response)!r}"
    else:
        _check_content(promised, response)


def nulls(schema: str) -> dict[str, None]:
    """Return all fields of an object in the document, each null: a test adds what it is about."""
    return dict.fromkeys(DOCUMENT["components"]["schemas"][schema]["properties"])


def operations() -> Iterator[tuple[str, str, Json]]:
    """Every method (upper case) and path template of the document, with what is said of it."""
    for template, item in DOCUMENT["paths"].items():
        yield from ((method.upper(), template, item[method]) for method in METHODS if method in item)


def resolved(node: Json) -> Json:
    """What the node says itself, or what it refers to."""
    while "$ref" in node:
        target: Any = DOCUMENT
        for name in node["$ref"].removeprefix("#/").split("/"):
            target = target[name.replace("~1", "/").replace("~0", "~")]
        node = target
    return node


def violations(schema: Json, value: object) -> list[str]:
    """Where and why `value` isn't what `schema`, some part of the document, says; JSON inside of strings included."""
    rooted = _closed({**schema, "components": {"schemas": DOCUMENT["components"]["schemas"]}})
    errors = _Validator(rooted, format_checker=_Validator.FORMAT_CHECKER).iter_errors(value)
    return [f"{leaf.json_path}: {leaf.message}" for error in errors for leaf in _leaves(error)]


def event_violations(schema: Json, blocks: list[Block]) -> list[str]:
    """Where a whole stream isn't what the document says: each event, `start` at the beginning, one last event."""
    events = [block for block in blocks if not block.is_comment]
    found = [f"event {i}, {error}" for i, event in enumerate(events) for error in violations(schema, _fields(event))]
    return found or list(_misplaced(events))


def _misplaced(events: list[Block]) -> Iterator[str]:
    if [event.event for event in events].count("start") != 1 or events[0].event != "start":
        yield "the first event isn't the one `start`"
    if [event.is_terminal for event in events].count(True) != 1 or not events[-1].is_terminal:
        yield "the last event isn't the one `done` or `error`"


def _documented(method: str, path: str) -> Json:
    item = next((item for template, item in DOCUMENT["paths"].items() if _matches(template, path)), None)
    if item is None:
        return {"401": PROBLEM, "403": PROBLEM, "404": PROBLEM}
    operation: Json | None = item.get("get" if method == "head" else method)
    if operation is None:
        allow = {"Allow": {"required": True, "schema": {"type": "string"}}}
        return {"401": PROBLEM, "403": PROBLEM, "405": {**PROBLEM, "headers": {**PROBLEM["headers"], **allow}}}
    responses: Json = operation["responses"]
    return responses


def _matches(template: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), path) is not None


def _check_headers(promised: Json, response: httpx.Response, *, required: bool) -> None:
    for name, reference in promised.get("headers", {}).items():
        header = resolved(reference)
        value = response.headers.get(name)
        if value is None:
            assert not (required and header.get("required")), f"{response.status_code} without {name}"
            continue
        is_number = header["schema"].get("type") == "integer" and value.isdecimal()
        wrong = violations(header["schema"], int(value) if is_number else value)
        assert not wrong, f"{name}: {value!r}: {wrong}"


def _check_content(promised: Json, response: httpx.Response) -> None:
    content = promised.get("content")
    if content is None:
        assert not _body(response), f"{response.status_code} has a body: {_body(response)!r}"
        return
    media_type = response.headers.get("content-type", "").partition(";")[0]
    assert media_type in content, f"{response.status_code} with {media_type or 'no content type'}: {list(content)}"
    body = _body(response)
    if body is not None:
        wrong = _violations_of(media_type, content[media_type]["schema"], body)
        assert not wrong, f"{response.status_code} {wrong}: {body[:2000]!r}"


def _violations_of(media_type: str, schema: Json, body: bytes) -> list[str]:
    if media_type == "text/event-stream":
        parser = Parser()
        blocks = parser.feed(body)
        return ["the stream ends inside of an event"] if parser.inside_a_block else event_violations(schema, blocks)
    return violations(schema, json.loads(body) if media_type.endswith("json") else body.decode())


def _body(response: httpx.Response) -> bytes | None:
    try:
        return response.content
    except httpx.ResponseNotRead:
        return None


def _fields(event: Block) -> Json:
    fields = {"event": event.event, "id": event.id, "retry": event.retry, "data": event.data}
    return {name: value for name, value in fields.items() if value is not None}


def _closed(schema: Any) -> Any:
    """The schema, with every object closed that names its properties and doesn't say whether there may be others."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    return {"additionalProperties": False, **closed} if isinstance(schema.get("properties"), dict) else closed


def _leaves(error: jsonschema.ValidationError) -> Iterator[jsonschema.ValidationError]:
    """What is wrong with each alternative, rather than that none of them fits."""
    if not error.context:
        yield error
    for inner in error.context:
        yield from _leaves(inner)


def _json_in_string(validator: Any, schema: Json, value: object, _: Json) -> Iterator[jsonschema.ValidationError]:
    """`contentSchema`: JSON Schema leaves it to the reader to look into a string."""
    try:
        inner = json.loads(str(value))
    except ValueError as error:
        yield jsonschema.ValidationError(f"{value!r} is not JSON: {error}")
    else:
        yield from validator.descend(inner, schema)


_Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"contentSchema": _json_in_string})
