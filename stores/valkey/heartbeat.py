"""Signs of life of the relays, and replies whose relay gives none any more.

Silence is told by watching: a relay is gone if its last sign is the same for a lease, by this process's own clock and
over answers of the server. What was before an outage says nothing: then everybody looks gone.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from logs import outline
from stores.records import StoreError
from stores.reply import OwnReply
from stores.valkey.client import Client
from stores.valkey.follower import ReplyFollower
from stores.valkey.keys import BEAT, Keys, pairs
from stores.valkey.writer import LEASE_TIMEOUT, ReplyWriter

HEARTBEAT_INTERVAL = 2.0  # seconds between two signs of life
UNKNOWN_BEATS = 5  # after which a reply that should be made here and isn't counts as left alone


@dataclass(frozen=True, slots=True)
class Seen:
    """A relay's last sign of life, and since when (monotonic) it is the last."""

    beat: bytes | None
    since: float


class Heartbeat:
    """`on_totals` gets the server's time, and what it holds."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        relay: str,
        writer: ReplyWriter,
        replies: Mapping[str, OwnReply],
        follower: ReplyFollower,
        on_totals: Callable[[int, Sequence[int]], None],
    ) -> None:
        self._client, self._keys, self._relay = client, keys, relay
        self._writer, self._replies = writer, replies
        self._follower, self._on_totals = follower, on_totals
        self._seen: dict[str, Seen] = {}
        self._breaks = 0
        self._answered = 0.0
        self._unknown: Counter[str] = Counter()
        self.left: set[str] = set()
        """Replies that were made here and aren't any more, though they haven't ended."""
        self.orphans: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        """(conversation, message) of replies that nobody makes, told again until they have ended."""

    async def beat(self) -> None:
        """Until it is cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self.beat_once()
            except StoreError:
                pass
            except Exception as error:  # without signs of life all replies of this relay would be ended
                logging.getLogger("store").error("no sign of life\n%s", outline(error))
            await asyncio.sleep(max(0.1, HEARTBEAT_INTERVAL - (time.monotonic() - began)))

    async def beat_once(self) -> None:
        """Give a sign of life, and see who gives none."""
        made, followed = set(self._replies), self._follower.message_ids
        asked = sorted(made | followed)
        names = ("relays", "running", "list", "totals")
        beating = self._client.run(BEAT, [self._keys.of(name) for name in names], self._relay, *self._silent())
        looking = self._client.ask("HMGET", self._keys.of("running"), *asked) if asked else None
        now, beats, entries, held = await beating
        gone = {one for one, entry in zip(asked, await looking, strict=True) if entry is None} if looking else set()
        self._watch({relay.decode(): beat for relay, beat in pairs(beats)})
        self._on_totals(int(now), held)
        self._follower.end(gone & followed)
        for message_id in gone & made:
            self._writer.stop(message_id)
        self._find_orphans(entries, made)

    def _silent(self) -> list[str]:
        return [relay for relay in self._seen if self._is_silent(relay)]

    def _is_silent(self, relay: str) -> bool:
        return relay != self._relay and time.monotonic() - self._seen[relay].since >= LEASE_TIMEOUT

    def _watch(self, beats: dict[str, bytes]) -> None:
        now = time.monotonic()
        if self._breaks != self._client.breaks or now - self._answered > LEASE_TIMEOUT / 2:
            self._seen.clear()
        self._breaks, self._answered = self._client.breaks, now
        for relay, beat in beats.items():
            if relay not in self._seen or self._seen[relay].beat != beat:
                self._seen[relay] = Seen(beat, now)

    def _find_orphans(self, entries: Sequence[Any], made: set[str]) -> None:
        unknown: Counter[str] = Counter()
        orphans: list[tuple[str, str]] = []
        for entry_id, value in pairs(entries):
            message_id, (conversation_id, maker) = entry_id.decode(), value.decode().split(" ")
            if maker != self._relay:
                self._seen.setdefault(maker, Seen(None, time.monotonic()))
                is_orphan = self._is_silent(maker)
            else:
                unknown[message_id] = 0 if message_id in made else self._unknown[message_id] + 1
                is_orphan = message_id in self.left or unknown[message_id] >= UNKNOWN_BEATS
            if is_orphan:
                orphans.append((conversation_id, message_id))
        self._unknown = unknown
        self.left &= unknown.keys()
        for orphan in orphans if self.orphans.empty() else ():
            self.orphans.put_nowait(orphan)
