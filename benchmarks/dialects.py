"""The two ways in which a subject is asked for a stream: the relay's conversations, and the plain completions API."""

from dataclasses import dataclass, field

from benchmarks.exchange import Exchange, request


@dataclass(frozen=True)
class Conversations:
    """The relay's API: a conversation, a message, then its stream."""

    async def prepare(self, exchange: Exchange, mark: str) -> bytes:
        """The request that opens a stream of this mark, on a conversation made for it."""
        created = await exchange.expect(201, request("POST", "/conversations", {}))
        return await self.follow(exchange, created.json()["id"], mark)

    async def follow(self, exchange: Exchange, conversation: str, mark: str) -> bytes:
        """The same, on a conversation there is."""
        path = f"/conversations/{conversation}"
        await exchange.expect(201, request("POST", f"{path}/messages", {"content": question(mark)}))
        return request("GET", f"{path}/stream", headers={"Accept": "text/event-stream"})


@dataclass(frozen=True)
class Completions:
    """OpenAI's API, as pass-throughs and gateways have it: one POST that is answered with the stream."""

    path: str
    model: str = "bench/scripted"
    headers: dict[str, str] = field(default_factory=dict)

    async def prepare(self, exchange: Exchange, mark: str) -> bytes:
        """The request that opens a stream of this mark. Asks nothing."""
        messages = [{"role": "user", "content": question(mark)}]
        body = {"model": self.model, "messages": messages, "stream": True}
        return request("POST", self.path, body, {"Authorization": "Bearer test", **self.headers})


Dialect = Conversations | Completions


def question(mark: str) -> str:
    """A user's message that carries a mark for the scripted upstream."""
    return f"Please tell me, in a few friendly words, what the quick brown fox does today. [[{mark}]]"
