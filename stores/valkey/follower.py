"""Follows the replies that other relays make, and reads notes from other relays: one call waits for all of them.

The ids of a stream are positions in the text, so the length of the text here says from where to read on.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from logs import outline
from stores.records import Kind, StoreError, StoreUnavailable, Transcript
from stores.reply import Reply
from stores.valkey.client import Client, Relay
from stores.valkey.keys import END, FENCE, NOTE
from stores.valkey.writer import LEASE_TIMEOUT

BLOCK_TIMEOUT = 2.0  # seconds for which the server waits for new entries
BLOCK_MS = round(BLOCK_TIMEOUT * 1000)
MAX_ENTRIES = 32  # of each stream in one answer
LISTEN_RETRY_INTERVAL = 0.3  # seconds between two calls where the server can't be reached

KINDS: dict[str, Kind] = {"c": "content", "r": "reasoning"}

logger = logging.getLogger("store")


class ReplyFollower:
    """Follows replies. `on_note` is called with the id of a message that another relay has ended."""

    def __init__(self, relay: Relay, listener: Client, on_note: Callable[[str], None]) -> None:
        self._relay, self._listener, self._on_note = relay, listener, on_note
        self._inbox = relay.keys.of(f"in:{relay.id}")
        self._last_note = "0"  # the id of the last note that was read
        self._followed: dict[Reply, asyncio.Event] = {}  # the event is set when the reply has ended

    @property
    def message_ids(self) -> set[str]:
        """The ids of the replies that are followed."""
        return {reply.id for reply in self._followed}

    async def follow(self, reply: Reply, is_wanted: Callable[[], bool]) -> bool:
        """Add text as it comes. True when the reply has ended, False once it isn't wanted.

        Raises `StoreUnavailable` when nothing has been heard for `LEASE_TIMEOUT`.
        """
        has_ended = self._followed[reply] = asyncio.Event()
        try:
            with contextlib.suppress(StoreError):  # without the note the listener looks again by itself
                await self._relay.client.run(NOTE, [self._inbox], "w", reply.id)
            while not has_ended.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BLOCK_TIMEOUT):
                        await has_ended.wait()
                if self._listener.silent_for > LEASE_TIMEOUT:
                    raise StoreUnavailable("The store can't be reached.")
                if not has_ended.is_set() and not is_wanted():
                    return False
            return True
        finally:
            del self._followed[reply]

    def end(self, message_ids: set[str]) -> None:
        """Note that these replies aren't in progress any more."""
        for reply, has_ended in self._followed.items():
            if reply.id in message_ids:
                has_ended.set()

    async def listen(self) -> None:
        """Read notes and text until the task is cancelled."""
        while True:
            try:
                await self._listen()
            except Exception as error:  # a listener that ended would leave all readers without text
                if not isinstance(error, StoreError):
                    logger.error("what other relays tell can't be read\n%s", outline(error))
                await asyncio.sleep(LISTEN_RETRY_INTERVAL)

    async def _listen(self) -> None:
        followed = {
            self._relay.keys.of(f"r:{r.id}"): r for r, has_ended in self._followed.items() if not has_ended.is_set()
        }
        positions = [f"{reply.transcript.kept}-{END}" for reply in followed.values()]
        streams = (self._inbox, *followed, self._last_note, *positions)
        answer = await self._listener.ask("XREAD", "COUNT", MAX_ENTRIES, "BLOCK", BLOCK_MS, "STREAMS", *streams)
        for key, entries in answer or ():
            if key.decode() == self._inbox:
                self._take_notes(entries)
            else:
                self._take_text(followed[key.decode()], entries)

    def _take_notes(self, entries: Sequence[Any]) -> None:
        for entry_id, (kind, message_id) in entries:
            self._last_note = entry_id.decode()
            if kind == b"e":
                self._on_note(message_id.decode())

    def _take_text(self, reply: Reply, entries: Sequence[Any]) -> None:
        for entry_id, (kind, text) in entries:
            position = int(entry_id.partition(b"-")[0])
            if position == END and reply in self._followed:
                self._followed[reply].set()
            elif position < FENCE and (known := KINDS.get(kind.decode())):
                add(reply.transcript, position, known, text.decode())
        reply.wake()


def add(transcript: Transcript, position: int, kind: Kind, text: str) -> None:
    """Add the part of `text`, which ends at `position`, that is new: after a failover a relay repeats text."""
    new = position - transcript.kept
    if 0 < new <= len(text):
        transcript.append(kind, text[len(text) - new :])
