"""The text of the scripted upstream: the tokens of a stream and their bytes in OpenRouter's recorded chunk shape.

A token is five characters, so that characters and tokens convert exactly; the first one names the stream and is ten.
A stream's text follows from its key alone: a relay that mixes, drops, repeats or reorders tokens can't go unnoticed.
Knows no sockets.
"""

import json
import random

TOKEN_CHARS = 5
FIRST = b"Begin"
"""How every first token starts: what a reader looks for to know that it has come."""

_WORDS = (
    " the   quick  brown  foxes  jumps over,  lazy  dogs and  then it's  naïf  über  “so” – 日本語です 😀 ok. \n\n1. "
    "water light ing of tions ally, round which would their about could other these after first never where those "
    "being three while great still every found again under might house world years place right since small"
)
WORDS = tuple((_WORDS + " " * TOKEN_CHARS)[i : i + TOKEN_CHARS] for i in range(0, len(_WORDS), TOKEN_CHARS))

_MODEL = {"model": "bench/scripted-20260801", "provider": "Bench"}
_ID = {"id": "gen-1778452651-woYjQ50lbenchbench00", "object": "chat.completion.chunk", "created": 1778452651}
_USAGE = {"prompt_tokens": 18, "completion_tokens": 204, "total_tokens": 222, "cost": 0.00020652, "is_byok": False}

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Cache-Control: no-cache\r\nX-Generation-Id: gen-1778452651-woYjQ50lbenchbench00\r\n\r\n"
)


def first_token(key: int) -> str:
    """The first token of stream `key`: twice the usual length."""
    return f"Begin{key:05d}"


def text(key: int, tokens: int) -> str:
    """The exact text of the first `tokens` tokens of stream `key`."""
    if not tokens:
        return ""
    start, count = key % len(WORDS), tokens - 1
    cycles = "".join(WORDS) * (count // len(WORDS) + 2)
    return first_token(key) + cycles[start * TOKEN_CHARS : (start + count) * TOKEN_CHARS]


def frame(key: int, index: int) -> bytes:
    """Token `index` of stream `key` as one HTTP chunk, as a server that flushes each token sends it."""
    return _http_chunk(_event(first_token(key))) if index == 0 else FRAMES[(key + index - 1) % len(FRAMES)]


def models_body() -> bytes:
    """A models list of 400 entries and about 680 kB."""
    words, chance = (" ".join(WORDS)).split(), random.Random(5)
    phrases = [" ".join(chance.choices(words, k=7)) for _ in range(150)]
    entries = [_model(i, " ".join(chance.choices(phrases, k=38))) for i in range(400)]
    return json.dumps({"data": entries, "total_count": len(entries), "links": {}}).encode()


def _model(number: int, description: str) -> dict[str, object]:
    return {
        "id": f"bench/model-{number}",
        "canonical_slug": f"bench/model-{number}-20260801",
        "name": f"Bench: Model {number}",
        "created": 1778452651 + number,
        "description": description,
        "context_length": 131072,
        "architecture": {"modality": "text->text", "input_modalities": ["text"], "output_modalities": ["text"]},
        "pricing": {"prompt": "0.00000014", "completion": "0.00000056", "request": "0", "image": "0"},
        "supported_parameters": ["max_tokens", "temperature", "tools", "reasoning", "seed", "stop", "top_p"],
        "expiration_date": None,
    }


def _event(content: str) -> bytes:
    return _data({"content": content, "role": "assistant"}, None)


def _data(delta: dict[str, object], finish: str | None, **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "native_finish_reason": finish}
    chunk = {**_ID, **_MODEL, "choices": [choice], **more}
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _http_chunk(payload: bytes) -> bytes:
    return f"{len(payload):x}\r\n".encode() + payload + b"\r\n"


FRAMES = tuple(_http_chunk(_event(word)) for word in WORDS)
_EMPTY: dict[str, object] = {"content": "", "role": "assistant"}
_DONE = _http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
END = _http_chunk(_data(_EMPTY, "stop")) + _http_chunk(_data(_EMPTY, "stop", usage=_USAGE)) + _DONE
"""The end of every stream: the finish reason, the usage, `[DONE]` and the end of the HTTP body."""
ERROR = _http_chunk(_data(_EMPTY, "error", error={"code": 502, "message": "The provider is gone."})) + _DONE
"""The end of a stream that fails."""
