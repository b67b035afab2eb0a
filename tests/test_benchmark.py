"""The benchmark's arithmetic: when a token was there, and where the tables go."""

from pathlib import Path

import pytest

from benchmarks import report, text

OURS = b": hello\r\n\r\ndata: {%b}\r\n\r\n" * 2 + b'event: done\r\ndata: {"content": "no token"}\r\n\r\n'
BARE = b'data: {"choices": [{"delta": {%b}}]}\n\n' * 2 + b"data: [DONE]\n\n"
PARTS = (b'"content": "Begin00007"', b'"content": "\xf0\x9f\x98\x80 ok. twos"')


@pytest.mark.parametrize("body", [OURS % PARTS, BARE % PARTS], ids=["the relay's events", "the API's chunks"])
@pytest.mark.parametrize("size", [1, 7, 10_000], ids="chunks of {}".format)
def test_a_token_is_there_when_the_end_of_its_event_has_come(body: bytes, size: int) -> None:
    cut = (body[at : at + size] for at in range(0, len(body), size))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in cut)
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"

    pieces = [answer[at : at + 1] for at in range(len(answer))]
    arrivals = text.arrivals(pieces, range(len(pieces)))

    lengths = [len(text.read(pieces[: int(at) + 1])[0]) for at in arrivals]
    assert lengths == [10, 20, 20]
    assert all(len(text.read(pieces[: int(at)])[0]) < length for at, length in zip(arrivals, lengths, strict=True))


def test_a_table_goes_between_the_markers_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nafter\n")
    assert report.put("new", page)
    assert page.read_text() == "before\n<!-- benchmark -->\n\nnew\n\n<!-- /benchmark -->\nafter\n"
    assert not report.put("other", page, "storage")

    page.write_text("no markers")
    assert not report.put("new", page)
    assert page.read_text() == "no markers"
