"""Requests that offer another protocol (every one of a stock Java HttpClient, `curl --http2`): the offer is ignored."""

import asyncio
import contextlib
import json
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator

import pytest

from tests.support.relay import Relay
from tests.support.sockets import address
from tests.support.upstream import ANSWER
from tests.support.waiting import bounded

BODY = json.dumps({"title": "Grüße", "system_prompt": "Be brief."}).encode()
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nUpgrade: h2c\r\n"
"""What curl sends; Java's HttpClient sends the same in another order."""
LENGTH = b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def creation(offer: bytes = OFFER, body: bytes = LENGTH, version: bytes = b"1.1") -> bytes:
    """A request for a conversation."""
    start = b"POST /conversations HTTP/%b\r\nHost: localhost\r\nContent-Type: application/json\r\n" % version
    return start + offer + body


class Connection:
    """What a client without a library sends and gets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.send = writer.write
        self._reader = reader

    async def response(self) -> tuple[int, bytes]:
        """Status and body of the next response; interim ones are left out."""
        head = await bounded(self._reader.readuntil(b"\r\n\r\n"))
        status = int(head.split(b" ")[1])
        if status < 200:
            return await self.response()
        [length] = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        return status, await bounded(self._reader.readexactly(length))

    async def assert_created(self) -> None:
        """The next response is a conversation with everything that was in the body."""
        status, body = await self.response()
        fields = json.loads(body)
        assert (status, fields.get("title"), fields.get("system_prompt")) == (201, "Grüße", "Be brief."), body

    async def assert_end(self) -> None:
        """The service has closed the connection, and has sent nothing more."""
        assert await bounded(self._reader.read()) == b""


@pytest.fixture
async def connection(relay: Relay) -> AsyncIterator[Connection]:
    """One to the relay."""
    reader, writer = await asyncio.open_connection(*address(relay))
    with contextlib.closing(writer):
        yield Connection(reader, writer)


@pytest.mark.parametrize("body", [LENGTH, CHUNKED], ids=["length", "chunked"])
async def test_the_body_is_read_wherever_the_request_is_cut(connection: Connection, body: bytes) -> None:
    """What comes with a request before it has been read when that one is answered, so the cut is where it should be."""
    octets = creation(body=body)
    for cut in range(len(octets)):
        connection.send(HEALTH + octets[:cut])
        assert (await connection.response())[0] == 200
        connection.send(octets[cut:])
        await connection.assert_created()


@pytest.mark.parametrize(
    "offer",
    [
        b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
        b"CONNECTION: UPGRADE\r\nUPGRADE: H2C\r\n",
        b"connection:upgrade,http2-settings\r\nupgrade:h2c\r\n",
        b"Connection: keep-alive, Upgrade , HTTP2-Settings\r\nUpgrade: \th2c \r\n",
        b"Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: TLS/1.2\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n",
        b"Connection: Upgrade\r\nUpgrade:\r\n",
        b"Upgrade: h2c\r\n",
        b"Connection: Upgrade\r\n",
        b"Expect: 100-continue\r\n" + OFFER,
    ],
)
@pytest.mark.parametrize("body", [LENGTH, CHUNKED], ids=["length", "chunked"])
async def test_an_offer_of_any_form_is_ignored(connection: Connection, offer: bytes, body: bytes) -> None:
    for _ in range(2):  # the connection goes on
        connection.send(creation(offer, body))
        await connection.assert_created()


async def test_requests_with_and_without_offers_may_be_pipelined(connection: Connection) -> None:
    plain = creation(offer=b"")
    connection.send(b"".join([creation(), plain, HEALTH, creation(body=CHUNKED), creation(), plain]))
    for is_creation in (True, True, False, True, True, True):
        if is_creation:
            await connection.assert_created()
        else:
            assert (await connection.response())[0] == 200


@pytest.mark.parametrize(
    "octets",
    [
        creation(OFFER.replace(b"Upgrade, ", b"Upgrade, close, ")),
        creation(version=b"1.0"),
    ],
    ids=["close", "1.0"],
)
async def test_a_connection_that_is_to_end_ends_with_the_response(connection: Connection, octets: bytes) -> None:
    connection.send(octets)
    await connection.assert_created()
    await connection.assert_end()


async def test_what_is_wrong_is_refused_with_an_offer_as_without(connection: Connection) -> None:
    connection.send(creation(body=b"Content-Length: 1\r\n\r\n{"))
    assert (await connection.response())[0] == 400
    connection.send(creation(body=b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"))
    assert (await connection.response())[0] == 400
    await connection.assert_end()


async def test_a_preface_of_http_2_is_refused(connection: Connection) -> None:
    connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert (await connection.response())[0] == 400


@pytest.mark.parametrize("framing", [(), ("-H", "Transfer-Encoding: chunked")], ids=["length", "chunked"])
async def test_curl_that_offers_http_2_is_answered(
    relay: Relay, framing: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    common = ["-sS", "-v", "--http2", *framing, "-H", "Content-Type: application/json"]
    status, created, said = await curl(*common, "--data-binary", BODY.decode(), f"{relay.url}/conversations")
    assert (status, json.loads(created)["system_prompt"]) == (0, "Be brief."), said
    assert "Upgrade: h2c" in said
    url = f"{relay.url}/conversations/{json.loads(created)['id']}"
    await curl(*common, "--data-binary", '{"content": "Hi"}', f"{url}/messages")
    assert ANSWER[:5] in (await curl("-sS", "--http2", "-N", "-H", "Accept: text/plain", f"{url}/stream"))[1]
    assert "pgrade" not in caplog.text


async def curl(*arguments: str) -> tuple[int | None, str, str]:
    """How it ended, what it printed, what it said."""
    child = await asyncio.create_subprocess_exec("curl", *arguments, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    output, errors = await bounded(child.communicate())
    return child.returncode, output.decode(), errors.decode()
