"""Signs of life of the relays, and the replies of relays that give none any more.

A relay counts as gone if its last sign stays the same for `LEASE_TIMEOUT`, by the clock of this process, while the
server answers. Signs from before an outage don't count: after an outage every relay looks gone.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from logs import outline
from stores.records import StoreError
from stores.valkey.client import Relay
from stores.valkey.follower import ReplyFollower
from stores.valkey.keys import BEAT, pairs
from stores.valkey.writer import LEASE_TIMEOUT, ReplyWriter

HEARTBEAT_INTERVAL = 2.0  # seconds between two signs of life
UNKNOWN_BEATS = 5  # signs of life after which a reply that should be made here, and isn't, is an orphan


@dataclass(frozen=True, slots=True)
class Seen:
    """The last sign of life of a relay, and the (monotonic) time at which it came."""

    beat: bytes | None
    since: float


class Heartbeat:
    """Gives signs of life, and watches those of other relays."""

    def __init__(self, relay: Relay, writer: ReplyWriter, follower: ReplyFollower) -> None:
        self._relay, self._writer, self._follower = relay, writer, follower
        self._seen: dict[str, Seen] = {}
        self._breaks = 0  # of the connection, at the last answer
        self._answered = 0.0  # the (monotonic) time of the last answer
        self._unknown: Counter[str] = Counter()  # signs of life for which a reply has been without its task
        self.left: set[str] = set()
        """Replies that this relay has begun, makes no more and couldn't end."""
        self.orphans: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        """Replies that nobody makes, (conversation, message) each; they come again until they have ended."""

    async def beat(self) -> None:
        """Give signs of life until the task is cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self.beat_once()
            except Exception as error:  # without signs of life other relays would end all replies of this one
                if not isinstance(error, StoreError):
                    logging.getLogger("store").error("no sign of life\n%s", outline(error))
            await asyncio.sleep(max(0.1, HEARTBEAT_INTERVAL - (time.monotonic() - began)))

    async def beat_once(self) -> None:
        """Give a sign of life, and look which relays give none."""
        client, keys = self._relay.client, self._relay.keys
        own, followed = set(self._relay.replies), self._follower.message_ids
        ids = sorted(own | followed)
        names = ("relays", "running", "list", "totals")
        beating = client.run(BEAT, [keys.of(name) for name in names], self._relay.id, *self._silent_relays())
        looking = client.ask("HMGET", keys.of("running"), *ids) if ids else None
        now, beats, entries, totals = await beating
        gone = {id for id, entry in zip(ids, await looking, strict=True) if entry is None} if looking else set()
        self._watch({relay.decode(): beat for relay, beat in pairs(beats)})
        self._relay.hear(int(now), totals)
        self._follower.end(gone & followed)
        for message_id in gone & own:
            self._writer.stop(message_id)
        self._find_orphans(entries, own)

    def _silent_relays(self) -> list[str]:
        return [relay for relay in self._seen if self._is_silent(relay)]

    def _is_silent(self, relay: str) -> bool:
        return relay != self._relay.id and time.monotonic() - self._seen[relay].since >= LEASE_TIMEOUT

    def _watch(self, beats: dict[str, bytes]) -> None:
        now = time.monotonic()
        if self._breaks != self._relay.client.breaks or now - self._answered > LEASE_TIMEOUT / 2:
            self._seen.clear()
        self._breaks, self._answered = self._relay.client.breaks, now
        for relay, beat in beats.items():
            if relay not in self._seen or self._seen[relay].beat != beat:
                self._seen[relay] = Seen(beat, now)

    def _find_orphans(self, entries: Sequence[Any], own: set[str]) -> None:
        unknown: Counter[str] = Counter()
        orphans: list[tuple[str, str]] = []
        for entry_id, value in pairs(entries):
            message_id, (conversation_id, maker) = entry_id.decode(), value.decode().split(" ")
            if maker != self._relay.id:
                self._seen.setdefault(maker, Seen(None, time.monotonic()))
                is_orphan = self._is_silent(maker)
            else:
                unknown[message_id] = 0 if message_id in own else self._unknown[message_id] + 1
                is_orphan = message_id in self.left or unknown[message_id] >= UNKNOWN_BEATS
            if is_orphan:
                orphans.append((conversation_id, message_id))
        self._unknown = unknown
        self.left &= unknown.keys()
        for orphan in orphans if self.orphans.empty() else ():
            self.orphans.put_nowait(orphan)
