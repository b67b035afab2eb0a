"""Readers of the chat stream, and what they got."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.support.sse import Block, Parser
from tests.support.waiting import bounded


@dataclass
class Transcript:
    """What a reader of the chat stream got."""

    blocks: list[Block] = field(default_factory=list)
    """Without those that are nothing but comments."""
    comments: list[str] = field(default_factory=list)
    pings: list[Block] = field(default_factory=list)

    def add(self, block: Block) -> None:
        """Take a block in; comments and pings are kept apart."""
        self.comments += block.comments
        if block.event == "ping":
            self.pings.append(block)
        elif not block.is_comment:
            self.blocks.append(block)

    @property
    def content(self) -> str:
        """The text of the answer."""
        return "".join(block.content for block in self.blocks)

    @property
    def reasoning(self) -> str:
        """The text of the reasoning."""
        return "".join(block.json["reasoning"] for block in self.blocks if block.event == "reasoning")

    @property
    def start(self) -> dict[str, Any]:
        """The start event, decoded: the first of the stream and the only one."""
        assert [block.event for block in self.blocks].count("start") == 1 and self.blocks[0].event == "start"
        return self.blocks[0].json

    @property
    def last(self) -> dict[str, Any]:
        """The terminal event (`done` or `error`), decoded: the last of the stream and the only one."""
        terminal = [block for block in self.blocks if block.is_terminal]
        assert terminal and terminal == self.blocks[-1:], (
            f"terminal events: {terminal}; the last block: {self.blocks[-1:]}"
        )
        return terminal[0].json

    @property
    def ids(self) -> list[str | None]:
        """The id of every block, None where it has none."""
        return [block.id for block in self.blocks]

    @property
    def last_id(self) -> str:
        """What to come back with: the last id that isn't missing."""
        return [id for id in self.ids if id is not None][-1]


class Reader:
    """A connection that reads an event stream. Every wait for a block is bounded."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.transcript = Transcript()
        """Everything taken so far."""
        self._blocks = _blocks(response)

    async def next(self) -> Block:
        """The next block other than comments and pings; `EOFError` when the server has ended the stream in order."""
        while True:
            try:
                block = await bounded(anext(self._blocks))
            except StopAsyncIteration:
                raise EOFError(f"the stream has ended; its content: {self.transcript.content!r}") from None
            self.transcript.add(block)
            if not block.is_comment and block.event != "ping":
                return block

    async def until(self, text: str) -> Transcript:
        """Read until the content taken so far has `text` in it; everything taken so far."""
        content = self.transcript.content
        while text not in content:
            content += (await self.next()).content
        return self.transcript

    async def rest(self) -> Transcript:
        """Read to the end; only what hadn't been taken before."""
        blocks, comments = len(self.transcript.blocks), len(self.transcript.comments)
        whole = await self.whole()
        return Transcript(whole.blocks[blocks:], whole.comments[comments:])

    async def whole(self) -> Transcript:
        """Read to the end; everything since the connection was made."""
        try:
            while True:
                await self.next()
        except EOFError:
            return self.transcript

    async def close(self) -> None:
        """Leave."""
        await self.response.aclose()


async def _blocks(response: httpx.Response) -> AsyncIterator[Block]:
    assert response.status_code == 200, f"{response.status_code} {response.text}"
    parser = Parser()
    async for octets in response.aiter_bytes():
        for block in parser.feed(octets):
            yield block
    assert not parser.inside_a_block, f"the stream ended inside a block: {bytes(parser.left)!r}"
