"""The HTTP API: read and check the request, call the store, the replies or the adapter, shape the response.

Knows nothing of httpx, upstream's JSON or the environment. Errors travel as exceptions and become problem responses
(RFC 9457) in one table, `STATUS_OF`.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import Any, TypedDict

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from api.bodies import MODEL, OPTIONAL_MODEL, TITLE, Bounds, Rejected, read_fields, unprocessable
from api.pages import openapi, redoc, swagger_ui
from openrouter import OpenRouter, UpstreamError
from replies import Replies, Reply, Unavailable
from store import Conversation, Failure, Message, NotFound, NothingOwed, ReplyInProgress, Store, StoreFull

VERSION = "0.1.0"

KEEP_ALIVE = 15  # seconds between comments on a silent stream
LINGER = 5.0  # seconds that a client has for the rest of a body that isn't taken
LONG_LIST = 256 * 1024  # bytes of text in messages, from which on they are encoded one by one
RETRY_AFTER = 5  # seconds, where nothing better is known
RETRY_MS = 1_000  # after which an EventSource that was cut off comes back

_CURSOR = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_EVENT_ID = re.compile(r"([0-9a-f-]{36}):(end|[0-9]{1,9})")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")  # https://www.w3.org/TR/trace-context/


class State(TypedDict):
    """What the lifespan yields and every request sees."""

    store: Store
    replies: Replies
    openrouter: OpenRouter
    bounds: Bounds


Request = StarletteRequest[State]


# The API, in the order of the README's table.


async def index(request: Request) -> Response:
    links = {"docs": "/docs", "openapi": "/openapi.json", "health": "/health", "models": "/models"}
    return JSONResponse({"name": "chat-relay", "version": VERSION, **links})


async def health(request: Request) -> Response:
    replies = request.state["replies"]
    conversations, messages = await request.state["store"].counts()
    body = {
        "status": "draining" if replies.draining else "ok",
        "conversations": conversations,
        "messages": messages,
        "replies_in_progress": replies.in_progress,
    }
    if replies.draining:
        return JSONResponse(body, status_code=503, headers={"Retry-After": str(RETRY_AFTER)})
    return JSONResponse(body)


async def list_models(request: Request) -> Response:
    models = await request.state["openrouter"].models()
    headers = {"ETag": models.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if _none_match(request.headers.get("if-none-match", ""), models.etag):
        return Response(status_code=304, headers=headers)
    if re.search(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", request.headers.get("accept-encoding", "")):
        headers["Content-Encoding"] = "gzip"
        return Response(models.gzipped, headers=headers, media_type="application/json")
    return Response(models.body, headers=headers, media_type="application/json")


async def create_conversation(request: Request) -> Response:
    bounds = request.state["bounds"]
    rules = {"default_model": OPTIONAL_MODEL, "title": TITLE, "system_prompt": bounds.prompt}
    fields = await read_fields(request, bounds.max_body_bytes, rules, optional=True)
    conversation = await request.state["store"].create_conversation(**fields)
    location = f"{request.scope.get('root_path', '')}/conversations/{conversation.id}"
    return JSONResponse(_conversation(conversation), status_code=201, headers={"Location": location})


async def list_conversations(request: Request) -> Response:
    limit, cursor = request.query_params.get("limit", "50"), request.query_params.get("cursor")
    if not re.fullmatch("[0-9]{1,3}", limit) or not 1 <= int(limit) <= 200:
        raise Rejected(400, "`limit` can't be read: it must be a whole number from 1 to 200.")
    if cursor and not _CURSOR.fullmatch(cursor):
        raise Rejected(400, "`cursor` can't be read: it must be the `next_cursor` of the page before.")
    page, next_cursor = await request.state["store"].list_conversations(int(limit), cursor or None)
    return JSONResponse({"conversations": [_conversation(entry) for entry in page], "next_cursor": next_cursor})


async def get_conversation(request: Request) -> Response:
    return JSONResponse(_conversation(await request.state["store"].conversation(_id(request))))


async def update_conversation(request: Request) -> Response:
    await request.state["store"].conversation(_id(request))
    bounds = request.state["bounds"]
    rules = {"default_model": MODEL, "title": TITLE, "system_prompt": bounds.prompt}
    fields = await read_fields(request, bounds.max_body_bytes, rules)
    return JSONResponse(_conversation(await request.state["store"].update_conversation(_id(request), fields)))


async def delete_conversation(request: Request) -> Response:
    in_progress = await request.state["store"].delete_conversation(_id(request))
    if in_progress is not None:
        await request.state["replies"].forget(_id(request), in_progress)
    return Response(status_code=204)


async def add_message(request: Request) -> Response:
    store, replies, bounds = request.state["store"], request.state["replies"], request.state["bounds"]
    await store.conversation(_id(request))
    rules = {"content": bounds.content, "model": OPTIONAL_MODEL}
    fields = {"model": None} | await read_fields(request, bounds.max_body_bytes, rules, required="content")
    replies.check_open()
    if "text/event-stream" in request.headers.get("accept", ""):
        return _follow(request, await replies.ask(_id(request), **fields, traceparent=_traceparent(request)), 0)
    return JSONResponse(_message(await store.add_user_message(_id(request), **fields)), status_code=201)


async def list_messages(request: Request) -> Response:
    messages = await request.state["store"].messages(_id(request))
    if sum(message.transcript.size for message in messages) > LONG_LIST:
        return StreamingResponse(_one_by_one(messages), media_type="application/json")
    return JSONResponse({"messages": [_message(message) for message in messages]})


async def _one_by_one(messages: Sequence[Message]) -> AsyncGenerator[bytes, None]:
    """The same body in pieces: others are served between them, and a client that doesn't read holds only one."""
    for number, message in enumerate(messages):
        yield (b"," if number else b'{"messages":[') + json.dumps(_message(message), ensure_ascii=False).encode()
        await asyncio.sleep(0)
    yield b"]}"


async def delete_messages(request: Request) -> Response:
    message_id = request.path_params["message_id"]
    in_progress = await request.state["store"].delete_messages_from(_id(request), message_id)
    if in_progress is not None:
        await request.state["replies"].forget(_id(request), in_progress)
    return Response(status_code=204)


async def stream_reply(request: Request) -> Response:
    await request.state["store"].conversation(_id(request))
    if request.method == "HEAD":
        response = Response(headers=_STREAM_HEADERS, media_type="text/event-stream")
        del response.headers["content-length"]  # nobody knows it
        return response
    model = request.query_params.get("model") or None
    if complaint := OPTIONAL_MODEL.complaint(model):
        raise unprocessable([{"field": "model", "message": complaint}])
    last_event_id = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    if last_event_id:
        return await _resumed(request, last_event_id)
    return _follow(request, await request.state["replies"].start(_id(request), model, _traceparent(request)), 0)


async def stop_reply(request: Request) -> Response:
    await request.state["store"].conversation(_id(request))
    message = await request.state["replies"].stop(_id(request))
    return JSONResponse(_message(message)) if message else Response(status_code=204)


routes = [
    Route("/", index),
    Route("/health", health),
    Route("/models", list_models),
    Route("/conversations", create_conversation, methods=["POST"]),
    Route("/conversations", list_conversations),
    Route("/conversations/{id}", get_conversation),
    Route("/conversations/{id}", update_conversation, methods=["PATCH"]),
    Route("/conversations/{id}", delete_conversation, methods=["DELETE"]),
    Route("/conversations/{id}/messages", add_message, methods=["POST"]),
    Route("/conversations/{id}/messages", list_messages),
    Route("/conversations/{id}/messages/{message_id}", delete_messages, methods=["DELETE"]),
    Route("/conversations/{id}/stream", stream_reply),
    Route("/conversations/{id}/stream", stop_reply, methods=["DELETE"]),
    Route("/openapi.json", openapi),
    Route("/docs", swagger_ui),
    Route("/redoc", redoc),
]


# Errors: one builder, one table.

STATUS_OF: dict[type[Exception], int] = {
    NotFound: 404,
    ReplyInProgress: 409,
    NothingOwed: 409,
    StoreFull: 507,
    Unavailable: 503,
    ClientDisconnect: 400,  # nobody is there to read it
}


def problem(
    status: int, detail: str, *, headers: Mapping[str, str] | None = None, errors: list[dict[str, str]] | None = None
) -> Response:
    """A problem response: https://www.rfc-editor.org/rfc/rfc9457"""
    body: dict[str, Any] = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    body |= {"detail": detail} | ({"errors": errors} if errors else {})
    return Response(json.dumps(body, indent=2) + "\n", status, headers, "application/problem+json")


async def problem_of(request: StarletteRequest, error: Exception) -> Response:
    """The response to any exception in the table."""
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, Unavailable) else None
    return problem(STATUS_OF[type(error)], str(error) or "The client left.", headers=headers)


async def rejection(request: StarletteRequest, error: Exception) -> Response:
    """The response to a request that can't be taken."""
    assert isinstance(error, Rejected)
    headers = {"Connection": "close"} if error.close else None
    response = problem(error.status, str(error), headers=headers, errors=error.errors)
    return Lingering(response) if error.close and error.status == 413 else response


class Lingering(Response):
    """Sends `response` at once, but closes only when the client has sent its body, or after `LINGER` seconds.

    A server that closes at once may reset the connection before its response is read (RFC 9112, 9.6).
    """

    def __init__(self, response: Response) -> None:
        super().__init__(response.body, response.status_code, response.headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, read on without keeping anything, close."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):  # then the client has had its time
            async with asyncio.timeout(LINGER):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body"})


async def upstream_problem(request: StarletteRequest, error: Exception) -> Response:
    """The response where upstream fails and nothing is cached: unreachable, timed out, or anything else."""
    assert isinstance(error, UpstreamError)
    status = error.code if error.code in (503, 504) else 502
    return problem(status, error.message, headers={"Retry-After": str(RETRY_AFTER)} if status == 503 else None)


async def routing_problem(request: StarletteRequest, error: Exception) -> Response:
    """An unknown path, or a method that it doesn't have."""
    assert isinstance(error, HTTPException)
    if error.status_code != 405:
        return problem(error.status_code, f"There is nothing at this path. {_SEE_DOCS}")
    allowed = sorted({method for route in routes for method in _methods(route, request)})
    detail = f"{request.method} isn't possible here; {', '.join(allowed)} would be. {_SEE_DOCS}"
    return problem(405, detail, headers={"Allow": ", ".join(allowed)})


exception_handlers = {
    **dict.fromkeys(STATUS_OF, problem_of),
    Rejected: rejection,
    UpstreamError: upstream_problem,
    HTTPException: routing_problem,
}

_SEE_DOCS = "The API is described at /docs."


def _methods(route: Route, request: StarletteRequest) -> set[str]:
    match, _ = route.matches(request.scope)
    return set() if match is Match.NONE else route.methods or set()


# The stream: https://html.spec.whatwg.org/multipage/server-sent-events.html

_STREAM_HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}


async def _resumed(request: Request, last_event_id: str) -> Response:
    match = _EVENT_ID.fullmatch(last_event_id)
    if match is None:
        raise Rejected(400, "`Last-Event-ID` can't be read: it must be the `id` of an event of this stream.")
    message_id, place = match.groups()
    reply = await request.state["replies"].find(_id(request), message_id)
    if reply is None or place == "end":
        return Response(status_code=204)
    if int(place) > reply.message.transcript.length:
        raise Rejected(400, "`Last-Event-ID` can't be right: the reply has fewer characters than it says.")
    return _follow(request, reply, int(place))


class Reading(Response):
    """A response that counts as a reader of the reply while it is sent. A generator can't: it may never be started."""

    def __init__(self, reply: Reply, response: Response) -> None:
        self.reply = reply
        self.response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `Unavailable` where there are too many readers."""
        with self.reply.being_read():
            await self.response(scope, receive, send)


def _follow(request: Request, reply: Reply, position: int) -> Response:
    headers = {**_STREAM_HEADERS, "X-Message-Id": reply.message.id, "X-Model": reply.message.model or ""}
    accepted = request.headers.get("accept", "")
    response: Response
    if "text/plain" in accepted and "text/event-stream" not in accepted:
        response = StreamingResponse(_text(reply, position), headers=headers, media_type="text/plain")
    else:
        events = _events(reply, position)
        response = EventSourceResponse(events, headers=headers, ping=KEEP_ALIVE, ping_message_factory=_keep_alive)
    return Reading(reply, response)


def _keep_alive() -> ServerSentEvent:
    return ServerSentEvent(comment="keep-alive", sep="\n")


async def _events(reply: Reply, position: int) -> AsyncGenerator[bytes, None]:
    message = reply.message
    id_line = f"id: {message.id}:"
    start = json.dumps({"message_id": message.id, "model": message.model})
    yield f"event: start\n{id_line}{position}\nretry: {RETRY_MS}\ndata: {start}\n\n".encode()
    async with aclosing(reply.follow(position)) as runs:
        async for kind, text in runs:
            position += len(text)
            event = "event: reasoning\n" if kind == "reasoning" else ""
            # json.dumps escapes all but ASCII: clients exist that split lines at U+2028.
            yield f'{event}{id_line}{position}\ndata: {{"{kind}": {json.dumps(text)}}}\n\n'.encode()
    yield f"{id_line}end\ndata: {json.dumps(_last_event(reply.message))}\n\n".encode()


async def _text(reply: Reply, position: int) -> AsyncGenerator[bytes, None]:
    """The bare content, for a terminal; a failure is told in its last line."""
    async with aclosing(reply.follow(position)) as runs:
        async for kind, text in runs:
            if kind == "content":
                yield text.encode()
    error = reply.message.error
    yield f"\n[{error.message}]\n".encode() if error else b"\n"


def _last_event(message: Message) -> dict[str, Any]:
    if message.error is not None:
        return {"error": _failure(message.error), "message_id": message.id}
    return {
        "done": True,
        "message_id": message.id,
        "model": message.model,
        "status": message.status,
        "finish_reason": message.finish_reason,
        "usage": message.usage,
    }


# What goes out.


def _conversation(conversation: Conversation) -> dict[str, Any]:
    return {name: getattr(conversation, name) for name in Conversation.__slots__}


def _message(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "role": message.role,
        "content": message.transcript.content,
        "model": message.model,
        "timestamp": message.timestamp,
        "status": message.status,
        "finish_reason": message.finish_reason,
        "reasoning": message.transcript.reasoning or None,
        "usage": message.usage,
        "error": _failure(message.error) if message.error else None,
        "generation_id": message.generation_id,
    }


def _failure(failure: Failure) -> dict[str, Any]:
    return {name: getattr(failure, name) for name in Failure.__slots__}


def _id(request: Request) -> str:
    return str(request.path_params["id"])


def _traceparent(request: Request) -> str | None:
    told = request.headers.get("traceparent", "")
    return told if _TRACEPARENT.fullmatch(told) else None


def _none_match(header: str, etag: str) -> bool:
    """RFC 9110, 13.1.2: a weak comparison."""
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags
