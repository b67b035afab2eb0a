"""The contract, `openapi.json`, in itself and against the routes, and the assertion that holds responses to it."""

import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from api.fields import Text
from routes import routes
from settings import Settings
from tests.support.contract import DOCUMENT, Json, check_response, event_violations, operations, resolved, violations
from tests.support.sse import Parser

CONVERSATION = "/conversations/0b5f6f0e-6f0c-4d0e-9c3e-2f6a1f1f8f51"
OPERATIONS = [pytest.param(operation, id=f"{method} {path}") for method, path, operation in operations()]


def bodies(operation: Json) -> Iterator[tuple[str, Json]]:
    """Every content of an operation, with a name: its request's, its responses'."""
    holders = {"request": operation.get("requestBody", {}), **operation["responses"]}
    for name, holder in holders.items():
        for media_type, content in resolved(holder).get("content", {}).items():
            yield f"{name} {media_type}", content


def example(name: str) -> Any:
    """The value of an example of the document."""
    return DOCUMENT["components"]["examples"][name]["value"]


def answer(status: int, body: object = None, media_type: str = "application/json", **headers: str) -> httpx.Response:
    """A response as the service would send it; `body` is JSON, or bytes as they are."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    typed = {"Content-Type": media_type} if body is not None else {}
    return httpx.Response(status, headers={"X-Request-ID": "1", **typed, **headers}, content=content)


def refusal(status: int, **headers: str) -> httpx.Response:
    """A problem response of that status."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": "No."}
    return answer(status, body, "application/problem+json", **headers)


def transcript() -> bytes:
    """The stream that the document shows."""
    described = DOCUMENT["paths"]["/conversations/{id}/stream"]["get"]["responses"]["200"]["description"]
    found = re.search(r"```text\n(.*?)```", described, re.DOTALL)
    assert found
    return found[1].encode()


STREAM_HEADERS = {
    "X-Message-Id": "c2a6d0b4-3e57-4c0a-9d1f-7b8e21f5a6d3",
    "X-Model": "openai/gpt-5-mini",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}


def test_the_document_is_valid_openapi_3_1() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_every_route_is_documented_and_everything_documented_has_a_route() -> None:
    served = {
        (method, route.path)
        for route in routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert served == {(method, path) for method, path, _ in operations()}


def test_every_operation_has_a_name_of_its_own_in_camel_case() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z]+([A-Z][a-z]+)*", name) for name in names)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_body_has_examples_that_match_its_schema(operation: Json) -> None:
    for name, content in bodies(operation):
        assert content["examples"], name
        for reference in content["examples"].values():
            assert not violations(content["schema"], resolved(reference)["value"]), name


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_error_is_a_problem_of_its_status(operation: Json) -> None:
    for status, response in operation["responses"].items():
        content = resolved(response).get("content", {})
        if int(status) < 400 or (operation["operationId"] == "getHealth" and status == "503"):
            continue
        assert list(content) == ["application/problem+json"]
        examples = content["application/problem+json"]["examples"].values()
        assert {str(shown["value"]["status"]) for shown in examples} == {status}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_response_carries_a_request_id_and_every_refusal_what_its_status_asks_for(operation: Json) -> None:
    needed = {"401": {"WWW-Authenticate"}, "503": {"Retry-After"}}
    for status, response in operation["responses"].items():
        assert {"X-Request-ID", *needed.get(status, set())} <= set(resolved(response)["headers"])


def test_every_operation_can_crash_and_be_refused_but_a_probe_needs_no_token() -> None:
    for _, path, operation in operations():
        refusals = {"403", "500"} if path == "/health" else {"401", "403", "500"}
        assert refusals == set(operation["responses"]) & {"401", "403", "500"}


def test_every_path_with_an_id_can_be_not_found_and_no_other() -> None:
    for _, path, operation in operations():
        assert ("404" in operation["responses"]) == ("{id}" in path)


def test_a_body_can_be_refused_in_every_way_and_takes_no_unknown_field() -> None:
    for _, _, operation in operations():
        refusals = {"408", "413", "415"} & set(operation["responses"])
        assert refusals == ({"408", "413", "415"} if "requestBody" in operation else set())
        for name, content in bodies(operation):
            if name.startswith("request"):
                assert resolved(content["schema"])["additionalProperties"] is False


def test_the_lengths_are_those_of_the_settings() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    most = Settings().max_message_chars
    assert schemas["MessageCreate"]["properties"]["content"]["maxLength"] == most
    for name in ("ConversationCreate", "ConversationUpdate"):
        assert schemas[name]["properties"]["system_prompt"]["maxLength"] == most


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ("ConversationCreate", {"title": " "}),
        ("ConversationCreate", {"system_prompt": ""}),
        ("ConversationCreate", {"default_model": "é"}),
        ("ConversationCreate", {"default_model": "  "}),
        ("ConversationUpdate", {"default_model": None}),
        ("ConversationUpdate", {"title": "x" * 201}),
        ("MessageCreate", {}),
        ("MessageCreate", {"content": None}),
        ("MessageCreate", {"content": "\n\t "}),
        ("MessageCreate", {"content": "x" * 200_001}),
        ("MessageCreate", {"content": "x", "model": ""}),
        ("MessageCreate", {"content": "x", "role": "user"}),
    ],
)
def test_a_body_that_is_refused_is_refused_by_the_document_too(schema: str, value: Json) -> None:
    assert violations({"$ref": f"#/components/schemas/{schema}"}, value)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ("ConversationCreate", {"title": None, "system_prompt": None, "default_model": None}),
        ("ConversationUpdate", {}),
        ("ConversationUpdate", {"title": None, "system_prompt": None}),
        ("MessageCreate", {"content": "x" * 200_000, "model": None}),
        ("MessageCreate", {"content": " ä\n", "model": " a b"}),
    ],
)
def test_a_body_that_is_taken_is_taken_by_the_document_too(schema: str, value: Json) -> None:
    assert not violations({"$ref": f"#/components/schemas/{schema}"}, value)


def test_the_document_and_the_service_agree_on_what_is_blank() -> None:
    """Character by character: dialects of regular expressions differ in what they take for white space."""
    pattern = DOCUMENT["components"]["schemas"]["MessageCreate"]["properties"]["content"]["pattern"]
    rule = Text(10)
    for character in map(chr, [*range(0xD800), *range(0xE000, 0x20000)]):
        is_blank = rule.complaint(character) == "must not be blank"
        assert is_blank is (re.search(pattern, character) is None), ascii(character)


def test_the_stream_that_is_shown_is_one_that_the_document_allows() -> None:
    check_response("GET", f"{CONVERSATION}/stream", answer(200, transcript(), "text/event-stream", **STREAM_HEADERS))


@pytest.mark.parametrize(
    ("blocks", "complaint"),
    [
        (b'id: x\ndata: {"content": "a"}\n\n', "start"),
        (b'event: start\nid: x\nretry: 1\ndata: {"message_id": "x", "model": "m"}\n\n', "uuid"),
        (b'id: x\ndata: {"content": "a", "more": 1}\n\n', "event 0"),
        (b'data: {"content": "a"}\n\n', "'id' is a required property"),
        (b"id: x\ndata: hello\n\n", "is not JSON"),
        (b'event: error\nid: x\ndata: {"content": "a"}\n\n', "event 0"),
        (transcript() + transcript(), "the last event isn't the one"),
    ],
)
def test_a_stream_that_breaks_the_rules_is_found_out(blocks: bytes, complaint: str) -> None:
    found = event_violations({"$ref": "#/components/schemas/StreamEvent"}, Parser().feed(blocks))
    assert complaint in "; ".join(found)


@pytest.mark.parametrize(
    ("method", "path", "response"),
    [
        ("GET", CONVERSATION, answer(200, example("Conversation"))),
        ("get", f"{CONVERSATION}?a=b", answer(200, example("Conversation"), "application/json; charset=utf-8")),
        ("GET", "/conversations/anything", refusal(404)),
        ("HEAD", CONVERSATION, answer(200, b"")),
        ("HEAD", f"{CONVERSATION}/stream", answer(200, b"", "text/event-stream")),
        ("POST", "/conversations", answer(201, example("NewConversation"), Location=CONVERSATION)),
        ("DELETE", CONVERSATION, answer(204)),
        ("GET", f"{CONVERSATION}/stream", answer(200, b"Hello\n", "text/plain; charset=utf-8", **STREAM_HEADERS)),
        ("GET", "/no/such/path", refusal(404)),
        ("PUT", CONVERSATION, refusal(405, Allow="DELETE, GET, HEAD, PATCH")),
        ("PUT", CONVERSATION, refusal(403)),
    ],
)
def test_a_response_that_keeps_the_contract_passes(method: str, path: str, response: httpx.Response) -> None:
    check_response(method, path, response)


@pytest.mark.parametrize(
    ("method", "path", "response", "complaint"),
    [
        ("GET", CONVERSATION, refusal(409), "409 isn't documented"),
        ("GET", CONVERSATION, answer(200, example("Conversation"), "text/html"), "text/html"),
        ("GET", CONVERSATION, answer(200, {**example("Conversation"), "extra": 1}), "extra"),
        ("GET", CONVERSATION, answer(200, {**example("Conversation"), "id": "1 2"}), "does not match"),
        ("GET", CONVERSATION, answer(200, {**example("Conversation"), "created_at": "now"}), "date-time"),
        ("GET", CONVERSATION, answer(200, {}), "required"),
        ("GET", CONVERSATION, httpx.Response(200, json=example("Conversation")), "X-Request-ID"),
        ("POST", "/conversations", answer(201, example("NewConversation")), "Location"),
        ("DELETE", CONVERSATION, answer(204, {}), "body"),
        ("HEAD", CONVERSATION, answer(200, example("Conversation")), "body"),
        ("GET", "/no/such/path", answer(200, {}), "200 isn't documented"),
        ("PUT", CONVERSATION, refusal(405), "Allow"),
        ("GET", f"{CONVERSATION}/stream", answer(200, b"Hello", "text/plain"), "X-Message-Id"),
        ("GET", f"{CONVERSATION}/stream", refusal(503), "Retry-After"),
        ("GET", f"{CONVERSATION}/stream", refusal(503, **{"Retry-After": "soon"}), "Retry-After"),
        ("GET", f"{CONVERSATION}/stream", answer(200, b"id: x", "text/event-stream", **STREAM_HEADERS), "inside"),
    ],
)
def test_a_response_that_breaks_the_contract_fails(
    method: str, path: str, response: httpx.Response, complaint: str
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_response(method, path, response)
