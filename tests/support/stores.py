"""Stores that take their time, so that other requests are served between a rule and its answer."""

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from store import Store
from stores.records import Question
from stores.reply import BegunReply
from tests.support.waiting import Gate

Method = Callable[..., Awaitable[Any]]


class SlowStore(Store):
    """Waits before and after each of its methods, as one with a disk or a network does."""

    begun: ClassVar[int] = 0
    """How many replies the newest one has begun."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.chance = random.Random(5)
        SlowStore.begun = 0

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        return _slowed(self, attribute) if inspect.iscoroutinefunction(attribute) else attribute


def _slowed(store: SlowStore, method: Method) -> Method:
    async def slow(*args: Any, **kwargs: Any) -> Any:
        await some_turns(store.chance)
        try:
            answer = await method(*args, **kwargs)
            is_public = not method.__name__.startswith("_")
            SlowStore.begun += is_public and isinstance(answer, BegunReply)
            return answer
        finally:
            await some_turns(store.chance)

    return slow


async def some_turns(chance: random.Random) -> None:
    """Of the event loop: other requests are served meanwhile."""
    for _ in range(chance.randrange(10)):
        await asyncio.sleep(0)


class GatedStore(Store):
    """Waits, once told so, before one of its methods, or after it and before its answer is read."""

    gates: ClassVar[dict[str, Gate]] = {}
    """Of the newest one, by the method's name; the gate before it has `before ` and the name."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        GatedStore.gates = {}

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        return _gated(attribute) if inspect.iscoroutinefunction(attribute) else attribute


def _gated(method: Method) -> Method:
    async def gated(*args: Any, **kwargs: Any) -> Any:
        if gate := GatedStore.gates.get(f"before {method.__name__}"):
            await gate.passage()
        answer = await method(*args, **kwargs)
        if gate := GatedStore.gates.get(method.__name__):
            await gate.passage()
        return answer

    return gated


async def begin(store: Store, conversation_id: str, model: str | None = None) -> BegunReply:
    """The reply that is owed, begun."""
    reply = await store.begin_reply(conversation_id, model)
    assert isinstance(reply, BegunReply)
    return reply


async def ask(store: Store, conversation_id: str, question: Question) -> BegunReply:
    """The reply to a new question, begun."""
    reply = await store.ask(conversation_id, question)
    assert isinstance(reply, BegunReply)
    return reply
