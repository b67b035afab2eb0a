"""The relay that people write: what every figure is compared with. Nothing here is made slower, or faster, than that.

A client per request, `aiter_lines()`, `json.loads` for each line and a plain `StreamingResponse`; conversations in a
dict, and uvicorn as it comes. It lacks nearly everything the service promises: it is a yardstick, not an example.
"""

import json
import os
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

BASE_URL = os.environ.get("OPENROUTER_BASE_URL", "https://openrouter.ai/api/v1")
API_KEY = os.environ.get("OPENROUTER_API_KEY", "")
MODEL = os.environ.get("MODEL_NAME", "openrouter/auto")

conversations: dict[str, dict[str, Any]] = {}


def now() -> str:
    return datetime.now(UTC).isoformat()


def conversation_of(request: Request) -> dict[str, Any]:
    try:
        return conversations[str(request.path_params["id"])]
    except KeyError:
        raise HTTPException(404, "Conversation not found") from None


def message(role: str, content: str) -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "role": role, "content": content, "timestamp": now()}


async def root(request: Request) -> JSONResponse:
    return JSONResponse({"name": "naive"})


async def health(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


async def models(request: Request) -> JSONResponse:
    async with httpx.AsyncClient() as client:
        response = await client.get(f"{BASE_URL}/models")
    return JSONResponse({"models": response.json()["data"]})


async def create_conversation(request: Request) -> JSONResponse:
    conversation: dict[str, Any] = {"id": str(uuid.uuid4()), "created_at": now(), "messages": []}
    conversations[conversation["id"]] = conversation
    return JSONResponse(conversation, status_code=201)


async def list_conversations(request: Request) -> JSONResponse:
    summaries = [{"id": c["id"], "created_at": c["created_at"]} for c in conversations.values()]
    return JSONResponse({"conversations": sorted(summaries, key=lambda c: c["created_at"], reverse=True)})


async def create_message(request: Request) -> JSONResponse:
    conversation = conversation_of(request)
    body = await request.json()
    created = message("user", body["content"])
    conversation["messages"].append(created)
    return JSONResponse(created, status_code=201)


async def list_messages(request: Request) -> JSONResponse:
    return JSONResponse({"messages": conversation_of(request)["messages"]})


async def stream(request: Request) -> StreamingResponse:
    return StreamingResponse(events(conversation_of(request)), media_type="text/event-stream")


async def events(conversation: dict[str, Any]) -> AsyncIterator[str]:
    answer = ""
    history = [{"role": m["role"], "content": m["content"]} for m in conversation["messages"]]
    async with (
        httpx.AsyncClient(timeout=None) as client,
        client.stream(
            "POST",
            f"{BASE_URL}/chat/completions",
            headers={"Authorization": f"Bearer {API_KEY}"},
            json={"model": MODEL, "messages": history, "stream": True},
        ) as response,
    ):
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            payload = line[len("data: ") :]
            if payload == "[DONE]":
                break
            content = json.loads(payload)["choices"][0]["delta"].get("content")
            if content:
                answer += content
                yield f"data: {json.dumps({'content': content})}\n\n"
    conversation["messages"].append(message("assistant", answer))
    yield f"data: {json.dumps({'done': True})}\n\n"


app = Starlette(
    routes=[
        Route("/", root),
        Route("/health", health),
        Route("/models", models),
        Route("/conversations", create_conversation, methods=["POST"]),
        Route("/conversations", list_conversations),
        Route("/conversations/{id}/messages", create_message, methods=["POST"]),
        Route("/conversations/{id}/messages", list_messages),
        Route("/conversations/{id}/stream", stream),
    ],
    middleware=[Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])],
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8001")))
