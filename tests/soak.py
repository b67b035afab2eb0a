"""A soak: conversations made, answered, broken off and deleted for minutes, and what memory is left in use.

    python -m tests.soak [--minutes 3]

Prints the resident size and the open descriptors of the service after a warm-up, at each round, and at the end, when
everything has been deleted. Exits with 1 if they grew. Not collected by pytest.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.process import RelayProcess, process
from tests.support.relay import Relay
from tests.support.sockets import resident
from tests.support.upstream import ScriptedUpstream, UpstreamRequest, Wire, answer, cut
from tests.support.waiting import eventually

AT_ONCE = 25
"""Conversations that go on side by side."""
A_ROUND = 20
"""Conversations that each of them makes, one after another."""
QUESTION = "Why is the sky blue? " * 500
ANSWER = "Because of Rayleigh scattering. " * 2_000
WARM_UP = 12
"""Rounds after which the allocator has the fragments that it keeps."""
ROOM = 0.15
"""The part by which memory may have grown: the allocator's fragments."""


@dataclass(frozen=True)
class Figures:
    """What the service uses."""

    resident: int
    descriptors: int
    messages: int

    @classmethod
    async def of(cls, relay: RelayProcess) -> "Figures":
        """Now."""
        messages = (await relay.health())["messages"]
        return cls(resident(relay.pid), len(os.listdir(f"/proc/{relay.pid}/fd")), messages)

    def __str__(self) -> str:
        megabytes = self.resident / 1024 / 1024
        return f"{megabytes:8.1f} MiB resident, {self.descriptors:4} descriptors, {self.messages:5} messages"


async def cut_off(_: UpstreamRequest, wire: Wire) -> None:
    """Half an answer, and the connection breaks."""
    for piece in cut(ANSWER[: len(ANSWER) // 2], 10):
        await wire.delta(piece)
    wire.reset()


async def read(relay: Relay, conversation_id: str) -> None:
    """A reader that stays."""
    await relay.read(conversation_id)


async def leave(relay: Relay, conversation_id: str) -> None:
    """A reader that goes after the first text."""
    async with relay.stream(conversation_id) as reader:
        await reader.until("B")


async def stop(relay: Relay, conversation_id: str) -> None:
    """A reader that stops the reply."""
    await leave(relay, conversation_id)
    await relay.client.delete(f"/conversations/{conversation_id}/stream")


async def regenerate(relay: Relay, conversation_id: str) -> None:
    """A reader that has the same question answered again."""
    await relay.read(conversation_id)
    message_id = (await relay.messages(conversation_id))[-1]["id"]
    await relay.client.delete(f"/conversations/{conversation_id}/messages/{message_id}")
    await relay.read(conversation_id)


WAYS = [read, leave, stop, regenerate]


async def one_after_another(relay: Relay, number: int) -> None:
    """Conversations from their start to their end, each read in another way."""
    for turn in range(A_ROUND):
        conversation_id = (await relay.conversation(title="soak", system_prompt=QUESTION))["id"]
        await relay.say(conversation_id, f"{number} {turn} {QUESTION}")
        await WAYS[(number + turn) % len(WAYS)](relay, conversation_id)
        await relay.client.delete(f"/conversations/{conversation_id}")


async def one_round(relay: RelayProcess) -> Figures:
    """Many at once; returns when everything has ended and nothing is kept."""
    await asyncio.gather(*(one_after_another(relay, number) for number in range(AT_ONCE)))
    await relay.idle()
    return await Figures.of(relay)


async def soak(minutes: float, tell: Callable[[str], None] = print) -> bool:
    """True if the service uses no more at the end than after the first rounds."""
    async with ScriptedUpstream() as upstream, contextlib.AsyncExitStack() as stack:
        env = {"OPENROUTER_API_KEY": "key", "OPENROUTER_BASE_URL": upstream.base_url, "LOG_LEVEL": "ERROR"}
        relay = await stack.enter_async_context(process("python", "server.py", env=env))
        scripts = itertools.cycle([answer(ANSWER, 50, "Hm. " * 1000), cut_off, answer(ANSWER, 5), answer("B", 1)])

        async def each_in_turn(request: UpstreamRequest, wire: Wire) -> None:
            await next(scripts)(request, wire)

        upstream.play(each_in_turn)
        tell(f"{'start':9} {await Figures.of(relay)}")
        before = [await one_round(relay) for _ in range(WARM_UP)][-1]
        tell(f"{'warmed up':9} {before}")
        until = time.monotonic() + 60 * minutes
        after = before
        for number in itertools.count(1):
            after = await one_round(relay)
            tell(f"{number:9} {after}")
            if time.monotonic() >= until:
                break
        descriptors = before.descriptors

        async def closed() -> bool:
            return (await Figures.of(relay)).descriptors <= descriptors

        await eventually(closed)
        after = await Figures.of(relay)
        tell(f"{'after':9} {after}")
        return after.resident <= before.resident * (1 + ROOM) and after.messages == 0


def main() -> None:
    """Read the command line, soak, say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    fine = asyncio.run(soak(parser.parse_args().minutes))
    print("memory came back" if fine else "MEMORY DID NOT COME BACK")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
