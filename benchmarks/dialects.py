"""The two ways in which a subject is asked for a stream: the relay's conversations, and the plain completions API."""

from dataclasses import dataclass, field, replace

from benchmarks.exchange import Exchange, request


@dataclass(frozen=True)
class Conversations:
    """The relay's API: a conversation, a message, then its stream. `path` is that of a conversation there is."""

    path: str = ""

    async def prepare(self, exchange: Exchange, mark: str) -> bytes:
        """The request that opens a stream of this mark, on a conversation made for it unless there is one."""
        path = self.path or await _created(exchange)
        await exchange.expect(201, request("POST", f"{path}/messages", {"content": question(mark)}))
        return request("GET", f"{path}/stream", headers={"Accept": "text/event-stream"})

    async def after(self, exchange: Exchange, history: list[str]) -> "Conversations":
        """The same on a conversation that holds these messages."""
        path = await _created(exchange)
        for message in history:
            await exchange.expect(201, request("POST", f"{path}/messages", {"content": message}))
        return Conversations(path)


@dataclass(frozen=True)
class Completions:
    """OpenAI's API, as pass-throughs and gateways have it: one POST that is answered with the stream."""

    path: str
    headers: dict[str, str] = field(default_factory=dict)
    history: tuple[str, ...] = ()

    async def prepare(self, exchange: Exchange, mark: str) -> bytes:
        """The request that opens a stream of this mark. Asks nothing."""
        messages = [{"role": "user", "content": content} for content in (*self.history, question(mark))]
        body = {"model": "bench/scripted", "messages": messages, "stream": True}
        return request("POST", self.path, body, {"Authorization": "Bearer test", **self.headers})

    async def after(self, exchange: Exchange, history: list[str]) -> "Completions":
        """The same with these messages in each request. Asks nothing."""
        return replace(self, history=tuple(history))


Dialect = Conversations | Completions


def question(mark: str) -> str:
    """A user's message that carries a mark for the scripted upstream."""
    return f"Please tell me, in a few friendly words, what the quick brown fox does today. [[{mark}]]"


async def _created(exchange: Exchange) -> str:
    """The path of a new conversation."""
    created = await exchange.expect(201, request("POST", "/conversations", {}))
    return f"/conversations/{created.json()['id']}"
