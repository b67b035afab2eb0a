"""Writes the text of replies that are made here to the server. Readers see text once the server has it.

All replies share one call every `WRITE_INTERVAL`. The server adds a text only at the position that the relay names, so
that it never adds text twice, to a reply that has ended, or behind text that a failover has lost: the relay then writes
the lost text again.
"""

import asyncio
import json
import logging
import time
from contextlib import suppress
from dataclasses import replace

from stores.engine import WRITE_INTERVAL
from stores.records import Kind, StoreError, StoreFull, StoreUnavailable, encode_report
from stores.reply import OwnReply, over
from stores.valkey.client import Relay
from stores.valkey.keys import APPEND, FENCE

LEASE_TIMEOUT = 10.0  # seconds of silence after which a relay, or the server, counts as gone
APPEND_RETRY_INTERVAL = 0.1  # seconds until text that couldn't be stored is written again
FENCE_TIMEOUT = 2.0  # seconds in which the relay that has fenced a reply off ends it

_LETTERS: dict[Kind, str] = {"content": "c", "reasoning": "r"}

logger = logging.getLogger("store")


class ReplyWriter:
    """Writes the text of all replies that are made here, and their reports."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._waiting: set[OwnReply] = set()  # replies with text or a report for the next call
        self._unreported: set[OwnReply] = set()  # replies whose report the server lacks
        self._torn: dict[OwnReply, int] = {}  # the position up to which the server has the text, after a failover
        self._fenced: dict[OwnReply, asyncio.Event] = {}  # set when the relay that fenced the reply off has ended it
        self._tick: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_urgent = False
        self._free_at = 0.0  # the time from which the next call may be made
        self._failing_since: float | None = None

    def stop(self, message_id: str, *, fenced: bool = False) -> None:
        """Write no more text of a reply: it has ended, or another relay has fenced it off and is about to end it."""
        if (reply := self._relay.replies.pop(message_id, None)) is None:
            for other, has_ended in self._fenced.items():
                if other.id == message_id:
                    has_ended.set()
            return
        self._relay.totals.text -= reply.transcript.size
        self._waiting.discard(reply)
        self._unreported.discard(reply)
        self._torn.pop(reply, None)
        if fenced:
            self._fenced[reply] = asyncio.Event()
        reply.refuse(over())

    def close(self) -> None:
        """Write no more text, whatever the server lacks."""
        self._relay.replies.clear()
        self._waiting.clear()
        if self._tick:
            self._tick.cancel()
        if self._task:
            self._task.cancel()

    def keep(self, reply: OwnReply, *, at_once: bool = False) -> None:
        """Keep text as `Engine.keep` promises."""
        self._waiting.add(reply)
        self._append_soon(at_once=at_once)

    def report(self, reply: OwnReply) -> None:
        """Let other relays know what upstream reports of a reply."""
        report = replace(reply.report, usage=None)  # the end has the usage: some servers report it with each token
        if reply.id in self._relay.replies and report != reply.shared_report:
            reply.shared_report = report
            self._unreported.add(reply)
            self.keep(reply)

    async def ended_elsewhere(self, reply: OwnReply) -> None:
        """Wait until the relay that fenced the reply off, if one did, has ended it."""
        if has_ended := self._fenced.get(reply):
            with suppress(TimeoutError):  # after that this relay ends the reply
                async with asyncio.timeout(FENCE_TIMEOUT):
                    await has_ended.wait()
            self._fenced.pop(reply, None)

    def _append_soon(self, *, at_once: bool = False) -> None:
        if self._task:
            self._is_urgent |= at_once
        elif at_once:
            self._append_now()
        elif self._tick is None:
            loop = self._relay.client.loop
            if self._free_at <= loop.time():
                self._append_now()
            else:
                self._tick = loop.call_at(self._free_at, self._append_now)

    def _append_now(self) -> None:
        if self._tick:
            self._tick.cancel()
            self._tick = None
        if self._waiting and self._task is None:
            self._free_at = self._relay.client.loop.time() + WRITE_INTERVAL
            self._task = asyncio.create_task(self._append())
            self._task.add_done_callback(self._on_appended)

    def _on_appended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()):
            logger.error("text of replies can't be stored (%s)", type(error).__name__)
        if self._waiting:
            is_urgent, self._is_urgent = self._is_urgent, False
            self._append_soon(at_once=is_urgent)

    async def _append(self) -> None:
        batch, self._waiting = self._waiting, set()
        entries = [(reply, *entry) for reply in batch for entry in self._entries(reply)]
        if not entries:
            return
        keys = [self._relay.keys.of(f"r:{reply.id}") for reply, *_ in entries]
        arguments = [f"{before} {behind} {kind} {text}" for _, before, behind, kind, text in entries]
        try:
            answers = await self._relay.client.run(APPEND, keys, *arguments)
        except StoreFull as error:
            self._refuse(batch, error)
        except StoreUnavailable as error:
            self._failing_since = self._failing_since or time.monotonic()
            if time.monotonic() - self._failing_since > LEASE_TIMEOUT:
                self._refuse(batch, error)
            for reply in filter(self._is_written, batch):
                self._repeat(reply, from_position=self._torn.get(reply, reply.transcript.kept))
            await asyncio.sleep(APPEND_RETRY_INTERVAL)
        else:
            self._failing_since = None
            positions = map(int, answers.split())
            for reply, position in {entry[0]: at for entry, at in zip(entries, positions, strict=True)}.items():
                self._take_answer(reply, position)

    def _entries(self, reply: OwnReply) -> list[tuple[int, int, str, str]]:
        """The entries that the server lacks: the position before and behind each text, its kind, and the text."""
        transcript = reply.transcript
        position = self._torn.get(reply, transcript.kept)
        entries = []
        if reply in self._unreported:
            self._unreported.discard(reply)
            entries.append((position, position, "g", json.dumps(encode_report(reply.shared_report))))
        for kind, text in transcript.read(position, transcript.taken, is_kept=False):
            entries.append((position, position + len(text), _LETTERS[kind], text))
            position += len(text)
        return entries

    def _is_written(self, reply: OwnReply) -> bool:
        return reply.refusal is None and reply.id in self._relay.replies

    def _take_answer(self, reply: OwnReply, position: int) -> None:
        """Note that the server has the text up to `position`: more, the end, or less after a failover."""
        if not self._is_written(reply):
            return
        transcript = reply.transcript
        if position < 0 or position >= FENCE:
            self.stop(reply.id, fenced=position == FENCE)
        elif position < transcript.kept:  # a failover has lost text
            self._repeat(reply, from_position=position)
            self._is_urgent = True
        else:
            self._torn.pop(reply, None)
            reply.keep(position)
            if transcript.taken > position:
                self._waiting.add(reply)

    def _repeat(self, reply: OwnReply, *, from_position: int) -> None:
        """Write the report and the text from that position on again."""
        self._torn[reply] = from_position
        self._unreported.add(reply)
        self._waiting.add(reply)

    def _refuse(self, batch: set[OwnReply], error: StoreError) -> None:
        for reply in filter(self._is_written, batch):
            self._relay.totals.text -= reply.refuse(error)
