"""x"""
import asyncio, os
from dataclasses import dataclass
from tests.upstream import ScriptedUpstream
from tests.waiting import eventually

@dataclass(frozen=True)
class Leftovers:
    tasks: int
    connections: int
    descriptors: int

    @classmethod
    def now(cls, upstream: ScriptedUpstream) -> "Leftovers":
        return cls(len(asyncio.all_tasks()), upstream.connections, len(os.listdir("/proc/self/fd")))

    async def are_all(self, upstream: ScriptedUpstream) -> None:
        def nothing_more_is_left() -> bool:
            now = Leftovers.now(upstream)
            return now.tasks <= self.tasks and now.connections <= self.connections and now.descriptors <= self.descriptors
        await eventually(nothing_more_is_left)
