"""The relay that people write: what every figure is compared with. Nothing here is made slower, or faster, than that.

FastAPI, a client per request with a time-out, `aiter_lines()`, `json.loads` for each line and a plain
`StreamingResponse`; conversations in a dict, and uvicorn as it comes. It lacks nearly everything the service promises:
it is a yardstick, not an example.
"""

import json
import os
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

BASE_URL = os.environ.get("OPENROUTER_BASE_URL", "https://openrouter.ai/api/v1")
API_KEY = os.environ.get("OPENROUTER_API_KEY", "")
MODEL = os.environ.get("MODEL_NAME", "openrouter/auto")

app = FastAPI()
app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])


def new_id() -> str:
    return str(uuid.uuid4())


def now() -> datetime:
    return datetime.now(UTC)


class NewMessage(BaseModel):
    content: str


class Message(BaseModel):
    id: str = Field(default_factory=new_id)
    role: str
    content: str
    timestamp: datetime = Field(default_factory=now)


class Summary(BaseModel):
    id: str = Field(default_factory=new_id)
    created_at: datetime = Field(default_factory=now)


class Conversation(Summary):
    messages: list[Message] = []


conversations: dict[str, Conversation] = {}


def conversation_of(id: str) -> Conversation:
    if id not in conversations:
        raise HTTPException(404, "Conversation not found")
    return conversations[id]


@app.get("/")
async def root() -> dict[str, str]:
    return {"name": "naive"}


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/conversations", status_code=201)
async def create_conversation() -> Conversation:
    conversation = Conversation()
    conversations[conversation.id] = conversation
    return conversation


@app.get("/conversations", response_model=list[Summary])
async def list_conversations() -> list[Conversation]:
    return sorted(conversations.values(), key=lambda conversation: conversation.created_at, reverse=True)


@app.post("/conversations/{id}/messages", status_code=201)
async def create_message(id: str, new: NewMessage) -> Message:
    message = Message(role="user", content=new.content)
    conversation_of(id).messages.append(message)
    return message


@app.get("/conversations/{id}/messages")
async def list_messages(id: str) -> list[Message]:
    return conversation_of(id).messages


@app.get("/conversations/{id}/stream")
async def stream(id: str) -> StreamingResponse:
    return StreamingResponse(events(conversation_of(id)), media_type="text/event-stream")


async def events(conversation: Conversation) -> AsyncIterator[str]:
    answer = ""
    history = [{"role": message.role, "content": message.content} for message in conversation.messages]
    async with (
        httpx.AsyncClient(timeout=60) as client,
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
    conversation.messages.append(Message(role="assistant", content=answer))
    yield f"data: {json.dumps({'done': True})}\n\n"


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8001")))
