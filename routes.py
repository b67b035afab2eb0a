"""The HTTP API: read and check the request; call the store, the replies or OpenRouter; shape the response.

This module knows nothing about httpx, upstream's JSON or the environment. Errors travel as exceptions, and one table,
`STATUS_OF`, turns them into problem responses.
"""

import re
from collections.abc import Mapping
from typing import Protocol, TypedDict

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

from api.events import STREAM_HEADERS, parse_event_id, reply_response
from api.fields import MODEL, OPTIONAL_MODEL, TITLE, Options, Rule, Text, Turns, identifier, reference
from api.pages import openapi, redoc, swagger_ui
from api.problems import Lingering, problem
from api.requests import (
    Rejected,
    accepts_gzip,
    is_known,
    last_event_id,
    query_of,
    read_fields,
    traceparent,
    unprocessable,
    wants_events,
    wants_text,
)
from api.shapes import conversation_fields, conversations_response, message_response, messages_response
from openrouter import OpenRouter, UpstreamError
from replies import Replies, Unavailable
from settings import VERSION, Settings
from store import Store
from stores.records import (
    IdTaken,
    NotFound,
    NothingOwed,
    Question,
    Repeated,
    ReplyInProgress,
    StoreFull,
    StoreUnavailable,
)
from stores.reply import Reply

RETRY_AFTER = 5  # seconds, unless the exception knows better

_CURSOR = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


class Metrics(Protocol):
    """The part of the service's counts that the routes use."""

    def text(self, gauges: Mapping[str, float]) -> str: ...


class State(TypedDict):
    """The state that the lifespan yields and every request sees."""

    settings: Settings
    store: Store
    replies: Replies
    openrouter: OpenRouter
    metrics: Metrics


Request = StarletteRequest[State]


# The API, in the order of the table in docs/api.md.


async def index(request: Request) -> Response:
    links = {"docs": "/docs", "openapi": "/openapi.json", "health": "/health", "models": "/models"}
    return JSONResponse({"name": "chat-relay", "version": VERSION, "engine": request.state["store"].engine, **links})


async def health(request: Request) -> Response:
    store, replies = request.state["store"], request.state["replies"]
    conversations, messages = await store.counts()
    body = {
        "status": "draining" if replies.draining else "ok",
        "engine": store.engine,
        "store": "ok" if store.is_reachable else "unreachable",
        "conversations": conversations,
        "messages": messages,
        "replies_in_progress": replies.in_progress,
    }
    headers = {"Retry-After": str(RETRY_AFTER)} if replies.draining else None
    return JSONResponse(body, 503 if replies.draining else 200, headers)


async def show_metrics(request: Request) -> Response:
    store, replies = request.state["store"], request.state["replies"]
    conversations, messages = await store.counts()
    gauges = {
        "conversations": conversations,
        "messages": messages,
        "store_bytes": await store.text_size(),
        "store_limit_bytes": request.state["settings"].max_store_bytes,
        "replies_in_progress": replies.in_progress,
        "draining": int(replies.draining),
    }
    return Response(request.state["metrics"].text(gauges), media_type="text/plain; version=0.0.4")


async def list_models(request: Request) -> Response:
    models = await request.state["openrouter"].models()
    headers = {"ETag": models.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if is_known(request, models.etag):
        return Response(status_code=304, headers=headers)
    if is_gzipped := accepts_gzip(request):
        headers["Content-Encoding"] = "gzip"
    body = models.gzipped if is_gzipped else models.body
    return Response(body, headers=headers, media_type="application/json")


async def create_conversation(request: Request) -> Response:
    settings = request.state["settings"]
    rules: dict[str, Rule] = {
        "id": identifier,
        "default_model": OPTIONAL_MODEL,
        "title": TITLE,
        "system_prompt": _text_rule(request, nullable=True),
        "options": Options(settings.max_tokens),
        "messages": Turns(settings.max_messages, _text_rule(request, nullable=False)),
    }
    fields = await read_fields(request, rules, optional=True)
    try:
        status, conversation = 201, await request.state["store"].create_conversation(**fields)
    except Repeated as repeated:
        status, conversation = 200, repeated.found
    headers = {"Location": f"{request.scope.get('root_path', '')}/conversations/{conversation.id}"}
    return JSONResponse(conversation_fields(conversation), status_code=status, headers=headers)


async def list_conversations(request: Request) -> Response:
    query = query_of(request)
    limit, cursor = query.get("limit", "50"), query.get("cursor")
    if not re.fullmatch("[0-9]{1,3}", limit) or not 1 <= int(limit) <= 200:
        raise Rejected(400, "`limit` can't be read: it must be a whole number from 1 to 200.")
    if cursor and not _CURSOR.fullmatch(cursor):
        raise Rejected(400, "`cursor` can't be read: it must be the `next_cursor` of the page before.")
    page, next_cursor = await request.state["store"].list_conversations(int(limit), cursor or None)
    return await conversations_response(page, next_cursor, request.state["store"].steps)


async def get_conversation(request: Request) -> Response:
    return JSONResponse(conversation_fields(await request.state["store"].conversation(_id(request))))


async def update_conversation(request: Request) -> Response:
    settings = request.state["settings"]
    rules: dict[str, Rule] = {
        "default_model": MODEL,
        "title": TITLE,
        "system_prompt": _text_rule(request, nullable=True),
        "options": Options(settings.max_tokens),
    }
    fields = await read_fields(request, rules)
    return JSONResponse(conversation_fields(await request.state["store"].update_conversation(_id(request), fields)))


async def delete_conversation(request: Request) -> Response:
    await request.state["store"].delete_conversation(_id(request))
    return Response(status_code=204)


async def add_message(request: Request) -> Response:
    conversation_id, text = _id(request), _text_rule(request, nullable=False)
    settings, store, replies = request.state["settings"], request.state["store"], request.state["replies"]
    if event_id := last_event_id(request):  # some clients reconnect by repeating the POST
        return await _resume(request, event_id)
    rules: dict[str, Rule] = {
        "content": text,
        "model": OPTIONAL_MODEL,
        "options": Options(settings.max_tokens),
        "id": identifier,
        "after": reference,
    }
    fields = await read_fields(request, rules, required=("content",))
    question = Question(**fields, traceparent=traceparent(request))
    if wants_events(request.headers.get("accept", "")):
        return reply_response(await replies.ask(conversation_id, question), 0, store.steps)
    try:
        if replies.draining:
            await store.check_is_new(conversation_id, question)
            replies.check_open()
        status, message = 201, await store.add_user_message(conversation_id, question)
    except Repeated as repeated:
        status, message = 200, repeated.found
    return await message_response(message, store.steps, status)


async def list_messages(request: Request) -> Response:
    return await messages_response(request.state["store"].slices(_id(request)), request.state["store"].steps)


async def delete_messages(request: Request) -> Response:
    await request.state["store"].delete_messages_from(_id(request), request.path_params["message_id"])
    return Response(status_code=204)


async def stream_reply(request: Request) -> Response:
    if request.method == "HEAD":
        await request.state["store"].conversation(_id(request))
        response = Response(headers=STREAM_HEADERS, media_type="text/event-stream")
        del response.headers["content-length"]  # the length is unknown
        return response
    query = query_of(request)
    model, join = query.get("model") or None, query.get("join") or "false"
    if complaint := OPTIONAL_MODEL.complaint(model):
        raise unprocessable([{"field": "model", "message": complaint}])
    if join not in ("true", "false"):
        raise unprocessable([{"field": "join", "message": "must be true or false"}])
    if event_id := last_event_id(request):
        return await _resume(request, event_id)
    replies = request.state["replies"]
    if join == "false":
        return _reply_response(request, await replies.start(_id(request), model, traceparent(request)), 0)
    reply = await replies.in_progress_in(_id(request))
    return _reply_response(request, reply, 0) if reply else Response(status_code=204)


async def _resume(request: Request, event_id: str) -> Response:
    place = parse_event_id(event_id)
    if place is None:
        raise Rejected(400, "`Last-Event-ID` can't be read: it must be the `id` of an event of this stream.")
    message_id, position = place
    reply = await request.state["replies"].find(_id(request), message_id)
    if reply is None or position is None:
        return Response(status_code=204)
    length = reply.transcript.kept
    if position > length and reply.message.status == "failed":
        position = length  # a power cut has lost text that the reader has
    if not reply.may_reach(position):
        raise Rejected(400, "`Last-Event-ID` can't be right: the reply has fewer characters than it says.")
    return _reply_response(request, reply, position)


def _reply_response(request: Request, reply: Reply, position: int) -> Response:
    as_text = request.method == "GET" and wants_text(request.headers.get("accept", ""))
    return reply_response(reply, position, request.state["store"].steps, as_text=as_text)


async def stop_reply(request: Request) -> Response:
    message = await request.state["replies"].stop(_id(request))
    return await message_response(message, request.state["store"].steps) if message else Response(status_code=204)


routes = [
    Route("/", index),
    Route("/health", health),
    Route("/metrics", show_metrics),
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


# Errors.

STATUS_OF: dict[type[Exception], int] = {
    NotFound: 404,
    ReplyInProgress: 409,
    NothingOwed: 409,
    IdTaken: 409,
    StoreFull: 507,
    StoreUnavailable: 503,
    Unavailable: 503,
    ClientDisconnect: 400,  # nobody reads this response
}


async def problem_of(request: StarletteRequest, error: Exception) -> Response:
    """Return the response to an exception in the table."""
    status = STATUS_OF[type(error)]
    headers = {"Retry-After": str(getattr(error, "retry_after", RETRY_AFTER))} if status == 503 else None
    return problem(status, str(error) or "The client left.", headers=headers)


async def rejection(request: StarletteRequest, error: Exception) -> Response:
    """Return the response to a bad request."""
    assert isinstance(error, Rejected)
    headers = {"Connection": "close"} if error.close else None
    response = problem(error.status, str(error), headers=headers, errors=error.errors)
    return Lingering(response) if error.close and error.status == 413 else response


async def upstream_problem(request: StarletteRequest, error: Exception) -> Response:
    """Return a 503 if upstream is unreachable, a 504 if it timed out, else a 502."""
    assert isinstance(error, UpstreamError)
    failure = error.failure
    status = failure.code if failure.code in (503, 504) else 502
    return problem(status, failure.message, headers={"Retry-After": str(RETRY_AFTER)} if status == 503 else None)


async def routing_problem(request: StarletteRequest, error: Exception) -> Response:
    """Return the response to an unknown path, or to a method that the path doesn't have."""
    assert isinstance(error, HTTPException)
    if error.status_code != 405:
        return problem(error.status_code, f"There is nothing at this path. {_SEE_DOCS}")
    allowed = sorted({method for route in routes for method in _methods(route, request)})
    detail = f"{request.method} isn't allowed here, only {', '.join(allowed)}. {_SEE_DOCS}"
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


def _id(request: Request) -> str:
    return str(request.path_params["id"])


def _text_rule(request: Request, *, nullable: bool) -> Text:
    return Text(request.state["settings"].max_message_chars, "MAX_MESSAGE_CHARS", nullable=nullable)
