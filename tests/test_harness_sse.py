"""The harness's own parser of event streams does what it says."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.readers import Transcript
from tests.support.sse import Block, Parser

STREAM = ": hello\nevent: start\nid: 1\nretry: 1000\ndata:{}\n\n: ping\n\ndata: é\u2028\x85\ndata\ndata:  b\nid\n\n"
BLOCKS = [
    Block("start", "1", 1000, "{}", (" hello",)),
    Block(comments=(" ping",)),
    Block(id="", data="é\u2028\x85\n\n b"),
]


def parsed(pieces: list[bytes]) -> list[Block]:
    parser = Parser()
    blocks = [block for piece in pieces for block in parser.feed(piece)]
    assert not parser.inside_a_block
    return [Block(block.event, block.id, block.retry, block.data, block.comments) for block in blocks]


@given(st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.lists(st.integers(0, 120)))
def test_the_parser_finds_the_same_blocks_however_the_bytes_are_cut(end: str, bom: bool, cuts: list[int]) -> None:
    octets = ("\ufeff" * bom + STREAM.replace("\n", end)).encode()
    bounds = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    assert parsed([octets[start:stop] for start, stop in pairwise(bounds)]) == BLOCKS


def test_the_parser_keeps_the_bytes_of_a_block() -> None:
    parser = Parser()
    assert [block.raw for block in parser.feed(b"id: 1\n\n: 2\r\n\r\n")] == [b"id: 1\n\n", b": 2\r\n\r\n"]


def test_the_parser_ignores_what_the_standard_ignores() -> None:
    assert parsed([b"id: a\0b\nretry: 1s\nevent\ndata: x\n\n"]) == [Block(data="x")]


@pytest.mark.parametrize("wrong", [b"evnt: x\n\n", b"data: \xff\n\n"])
def test_the_parser_refuses_what_the_service_must_not_send(wrong: bytes) -> None:
    with pytest.raises(ValueError):
        Parser().feed(wrong)


@pytest.mark.parametrize("cut", [b"data", b"data: x\n", b"data: x\n\n\xef"])
def test_the_parser_knows_that_it_is_inside_a_block(cut: bytes) -> None:
    parser = Parser()
    parser.feed(cut)
    assert parser.inside_a_block


def test_a_transcript_refuses_a_stream_that_goes_on_after_its_last_event() -> None:
    done, text = Block(data='{"done": true}'), Block(data='{"content": "x"}')
    assert Transcript([text, done]).last == {"done": True}
    for blocks in ([], [text], [done, text], [done, done]):
        with pytest.raises(AssertionError):
            assert Transcript(blocks).last
