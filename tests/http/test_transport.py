"""The HTTP client against raw sockets: back pressure, timers, ends, reuse, and cancelling; on both event loops."""

import asyncio
import ssl
import time
from collections.abc import Sequence

import httpx
import pytest

from tests.http.peers import CHUNKED, HELLO, OK, UNTIL_THE_END, Wire, hello, saying, served_by, turns
from tests.http.transports import ask, body, cancelled_at_every_turn, get, in_use, kept, nothing_left_of
from tests.support.waiting import bounded, eventually
from upstream.http.connection import HIGH_WATER
from upstream.http.transport import Transport

MEGABYTE = 1024 * 1024


# Back pressure and timers


async def test_a_long_request_goes_out_no_faster_than_the_server_reads_it(transport: Transport) -> None:
    sent, received = bytes(range(256)) * (20 * MEGABYTE // 256), bytearray()

    async def read_slowly(wire: Wire) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        while len(received) < len(sent):
            received.extend(await wire.reader.read(100_000))
            most.append(max(connection.transport.get_write_buffer_size() for connection in transport._open))
        await wire.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await wire.gone()

    most: list[int] = []
    async with served_by(read_slowly) as peer:
        response, _ = await bounded(ask(transport, peer, "POST", body=sent))
        assert (response.status_code, bytes(received) == sent, kept(transport)) == (204, True, 1)
        assert max(most) < MEGABYTE


async def test_a_request_that_is_not_read_times_out(transport: Transport) -> None:
    async def stand_still(wire: Wire) -> None:
        wire.stop_reading()
        await asyncio.Event().wait()

    async with served_by(stand_still) as peer:
        with pytest.raises(httpx.WriteTimeout):
            await bounded(ask(transport, peer, "POST", body=bytes(50 * MEGABYTE), read=0.3))
        assert in_use(transport) == 0


async def test_a_response_that_is_not_read_is_not_taken_into_memory(transport: Transport) -> None:
    async def pour(wire: Wire) -> None:
        await wire.request()
        wire.writer.write(UNTIL_THE_END)
        for number in range(50):
            wire.writer.write(bytes(MEGABYTE))
            try:
                await asyncio.wait_for(wire.writer.drain(), 0.3)
            except TimeoutError:
                blocked.append(number)
                await wire.writer.drain()

    blocked: list[int] = []
    async with served_by(pour) as peer:
        _, exchange = await bounded(ask(transport, peer))
        await eventually(lambda: blocked)
        assert blocked[0] < 20 and exchange._size <= 3 * HIGH_WATER
        assert len(await bounded(body(exchange))) == 50 * MEGABYTE


@pytest.mark.parametrize("octets", [b"", b"HTTP/1.1 200", OK + b"X: y\r\n", CHUNKED, CHUNKED + b"5\r\nhe"])
async def test_silence_ends_in_a_time_out_wherever_it_begins(transport: Transport, octets: bytes) -> None:
    async with served_by(saying(octets, then="stay")) as peer:
        with pytest.raises(httpx.ReadTimeout):
            _, exchange = await bounded(ask(transport, peer, read=0.1))
            await bounded(body(exchange))
        await exchange.aclose() if octets.startswith(CHUNKED) else None
        assert in_use(transport) == 0
        await eventually(lambda: peer.connections == 0)


async def test_the_timer_counts_from_the_last_byte(transport: Transport) -> None:
    async def drip_then_fall_silent(wire: Wire) -> None:
        await wire.request()
        await wire.write(OK + b"Content-Length: 100\r\n\r\n")
        for _ in range(6):
            await wire.write(b".")
            await asyncio.sleep(0.15)
        await wire.gone()

    received = b""
    async with served_by(drip_then_fall_silent) as peer:
        _, exchange = await bounded(ask(transport, peer, read=0.6))
        with pytest.raises(httpx.ReadTimeout):
            async for part in exchange:
                received += part
        assert received == b"......"


async def test_a_deadline_ends_a_response_however_much_comes(transport: Transport) -> None:
    async def drip(wire: Wire) -> None:
        await wire.request()
        await wire.write(UNTIL_THE_END)
        while True:
            await wire.write(b".")
            await asyncio.sleep(0.01)

    async with served_by(drip) as peer:
        started = asyncio.get_running_loop().time()
        _, exchange = await bounded(ask(transport, peer, deadline=started + 30))
        await bounded(exchange.read())
        exchange.deadline = started + 0.2  # earlier than what the timer is set to
        with pytest.raises(httpx.ReadTimeout):
            await bounded(body(exchange))
        assert 0.2 <= asyncio.get_running_loop().time() - started < 3


@pytest.mark.parametrize("octets", [[HELLO], [OK + b"Content-Length: 5\r\n\r\n", b"hello"]], ids=["head", "body"])
async def test_what_arrived_while_the_process_was_paused_is_read_instead_of_a_time_out(
    transport: Transport, octets: Sequence[bytes]
) -> None:
    async def stop_the_process(wire: Wire) -> None:
        await wire.request()
        *first, last = octets
        await wire.write(*first)
        await asyncio.sleep(0.1)  # of the timer's 0.5
        wire.writer.write(last)
        time.sleep(0.8)  # noqa: ASYNC251  # as SIGSTOP and SIGCONT do
        await wire.gone()

    async with served_by(stop_the_process) as peer:
        _, exchange = await bounded(ask(transport, peer, read=0.5))
        assert await bounded(body(exchange)) == b"hello"


# Ends

MOMENTS: dict[str, tuple[list[bytes], bytes]] = {  # what comes, and what of it is a body
    "before the status line": ([], b""),
    "in the status line": ([b"HTTP/1.1 20"], b""),
    "in the head": ([OK + b"Content-Le"], b""),
    "after the head": ([OK + b"Content-Length: 5\r\n\r\n"], b""),
    "in the body": ([OK + b"Content-Length: 5\r\n\r\n", b"hel"], b"hel"),
    "in the body, at once": ([OK + b"Content-Length: 5\r\n\r\nhel"], b"hel"),
    "in a chunk": ([CHUNKED + b"5\r\nhel"], b"hel"),
    "in a size": ([CHUNKED + b"5\r\nhello\r\n1"], b"hello"),
    "before the last chunk": ([CHUNKED + b"5\r\nhello\r\n"], b"hello"),
    "after the last chunk": ([CHUNKED + b"5\r\nhello\r\n0\r\n"], b"hello"),
    "in a trailer": ([CHUNKED + b"5\r\nhello\r\n0\r\nX: "], b"hello"),
    "after another response": ([b"HTTP/1.1 100 Continue\r\n\r\n"], b""),
}


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize(("pieces", "said"), MOMENTS.values(), ids=MOMENTS)
async def test_what_came_before_a_connection_died_is_read_before_the_error(
    transport: Transport, pieces: list[bytes], said: bytes, then: str
) -> None:
    received = b""
    async with served_by(saying(*pieces, then=then)) as peer:
        with pytest.raises(httpx.ReadError if then == "reset" else httpx.RemoteProtocolError):
            _, exchange = await bounded(ask(transport, peer, "POST", body=b"Hi"))
            while part := await bounded(exchange.read()):
                received += part
        assert received == said
        assert (kept(transport), in_use(transport), peer.accepted) == (0, 0, 1)


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize("until", [b"", b"\r\n\r\n"], ids=["at once", "after the head"])
async def test_a_connection_that_dies_while_a_request_is_sent_is_an_error(
    transport: Transport, until: bytes, then: str
) -> None:
    async def die(wire: Wire) -> None:
        if until:
            await wire.reader.readuntil(until)
        if then == "reset":
            wire.reset()

    async with served_by(die) as peer:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await bounded(ask(transport, peer, "POST", body=bytes(20 * MEGABYTE)))
        assert in_use(transport) == 0


async def test_a_body_that_lasts_until_the_end_is_cut_short_by_a_reset(transport: Transport) -> None:
    async with served_by(saying(UNTIL_THE_END + b"half", then="reset")) as peer:
        _, exchange = await bounded(ask(transport, peer))
        assert await bounded(exchange.read()) == b"half"
        with pytest.raises(httpx.ReadError):
            await bounded(exchange.read())


async def test_a_body_that_lasts_until_the_end_is_not_whole_if_it_is_closed_on_this_side(transport: Transport) -> None:
    async with served_by(saying(UNTIL_THE_END + b"half", then="stay")) as peer:
        _, exchange = await bounded(ask(transport, peer))
        assert await bounded(exchange.read()) == b"half"
        reading = asyncio.create_task(exchange.read())
        await turns(2)
        await transport.aclose()
        with pytest.raises(httpx.ReadError):
            await bounded(reading)


async def test_closing_the_client_ends_a_request_that_is_being_sent(transport: Transport) -> None:
    async def stand_still(wire: Wire) -> None:
        wire.stop_reading()
        await asyncio.Event().wait()

    async with served_by(stand_still) as peer:
        asking = asyncio.create_task(ask(transport, peer, "POST", body=bytes(20 * MEGABYTE)))
        await eventually(lambda: any(connection.is_full for connection in transport._open))
        await transport.aclose()
        with pytest.raises(httpx.ReadError):
            await bounded(asking)


# The next request


async def test_a_connection_is_used_again(transport: Transport) -> None:
    async with served_by(hello) as peer:
        assert [await bounded(get(transport, peer)) for _ in range(3)] == [b"hello"] * 3
        assert (peer.accepted, kept(transport)) == (1, 1)
        together = await bounded(asyncio.gather(*(get(transport, peer) for _ in range(3))))
        assert (together, peer.accepted, kept(transport)) == ([b"hello"] * 3, 3, 3)


async def greet_in_clear(wire: Wire) -> None:
    """Greet every request, and leave at the first byte of anything else."""
    while (await wire.reader.read(1 << 16)).startswith(b"GET "):
        await wire.write(HELLO)


async def test_a_connection_is_used_again_for_its_scheme_host_and_port_alone() -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with served_by(greet_in_clear) as peer, served_by(hello) as other, Transport(tls) as transport:
        for url in (peer.url, other.url, f"http://localhost:{peer.port}/", peer.url):
            assert await bounded(get(transport, url)) == b"hello"
        assert (peer.accepted, other.accepted, kept(transport)) == (2, 1, 3)
        with pytest.raises(httpx.ConnectError):
            await bounded(get(transport, peer.url.replace("http:", "https:")))
        assert peer.accepted == 3


@pytest.mark.parametrize("options", ["close", "Close", "keep-alive, close"])
async def test_a_connection_whose_request_says_close_is_not_used_again(transport: Transport, options: str) -> None:
    """RFC 9112, 9.6: a server that closes it later may not say so."""
    async with served_by(hello) as peer:
        assert await bounded(get(transport, peer, headers={"Connection": options})) == b"hello"
        assert (kept(transport), in_use(transport)) == (0, 0)
        await eventually(lambda: peer.connections == 0)


async def test_an_idle_connection_is_closed_after_a_while(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upstream.http.transport.IDLE_TIMEOUT", 0.3)
    async with served_by(hello) as peer:
        await bounded(asyncio.gather(*(get(transport, peer) for _ in range(5))))
        assert kept(transport)
        await eventually(lambda: peer.connections == 0)
        assert not any(transport._idle.values())


EVIL = OK + b"Content-Length: 4\r\n\r\nevil"


@pytest.mark.parametrize("more", [EVIL, b"x", b"HTTP/1.1 100 Continue\r\n\r\n", b"\0" * 1000])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
async def test_a_connection_that_sends_more_than_its_response_is_never_used_again(
    transport: Transport, more: bytes, at_once: bool
) -> None:
    async with served_by(saying(*([HELLO + more] if at_once else [HELLO, more]), then="stay")) as peer:
        assert await bounded(get(transport, peer)) == b"hello"
        await eventually(lambda: kept(transport) == 0)
        assert await bounded(get(transport, peer)) == b"hello"
        assert peer.accepted == 2


@pytest.mark.parametrize("more", [EVIL, b"\r\n", b""], ids=["a response", "a blank line", "the end"])
async def test_a_connection_with_something_to_read_is_not_used_again(transport: Transport, more: bytes) -> None:
    """Before the loop has turned to see it."""

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.write(HELLO)
        wires.append(wire)
        await wire.gone()

    wires: list[Wire] = []
    async with served_by(script) as peer:
        for number in range(1, 4):
            assert await bounded(get(transport, peer)) == b"hello"
            await eventually(lambda number=number: len(wires) == number)  # type: ignore[misc]
            wires[-1].writer.write(more) if more else wires[-1].writer.write_eof()
            assert kept(transport) == 1
        assert peer.accepted == 3


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_get_is_repeated_if_a_kept_connection_closed_before_a_byte_came_and_a_post_is_not(
    transport: Transport, then: str
) -> None:
    async def close_at_the_second(wire: Wire) -> None:
        await wire.request()
        await wire.write(HELLO)
        await wire.request()
        if then == "reset":
            wire.reset()

    async with served_by(close_at_the_second) as peer:
        assert [await bounded(get(transport, peer)) for _ in range(3)] == [b"hello"] * 3
        assert peer.accepted == 3
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await bounded(ask(transport, peer, "POST", body=b"Hi"))
        assert peer.accepted == 3


async def test_a_get_is_not_repeated_once_a_byte_came_nor_on_a_fresh_connection(transport: Transport) -> None:
    async def stammer(wire: Wire) -> None:
        await wire.request()
        await wire.write(HELLO)
        await wire.request()
        await wire.write(b"H")

    async with served_by(stammer) as peer:
        assert await bounded(get(transport, peer)) == b"hello"
        with pytest.raises(httpx.RemoteProtocolError):
            await bounded(get(transport, peer))
        assert peer.accepted == 1
        peer.script = saying()
        with pytest.raises(httpx.RemoteProtocolError):
            await bounded(get(transport, peer))
        assert peer.accepted == 2


async def test_a_get_on_a_kept_connection_is_not_repeated_if_the_server_is_silent(transport: Transport) -> None:
    async with served_by(saying(HELLO, then="stay")) as peer:
        assert await bounded(get(transport, peer)) == b"hello"
        with pytest.raises(httpx.ReadTimeout):
            await bounded(get(transport, peer, read=0.1))
        assert peer.accepted == 1


async def test_a_head_has_no_body(transport: Transport) -> None:
    async with served_by(saying(OK + b"Content-Length: 5\r\n\r\n", then="stay")) as peer:
        response, exchange = await bounded(ask(transport, peer, "HEAD"))
        assert (response.headers["content-length"], await bounded(body(exchange))) == ("5", b"")
        assert in_use(transport) == 0


# The rest of a response that nobody wants


async def test_a_finished_response_leaves_its_connection_to_the_next_request(transport: Transport) -> None:
    async def end_when_told(wire: Wire) -> None:
        await wire.request()
        await wire.write(CHUNKED + b"4\r\ndone\r\n")
        await told.wait()
        await wire.write(b"4\r\nmore\r\n", b"0\r\n\r\n")
        await wire.answer(HELLO)

    told = asyncio.Event()
    async with served_by(end_when_told) as peer:
        _, exchange = await bounded(ask(transport, peer))
        assert await bounded(exchange.read()) == b"done"
        exchange.finish(10)
        assert kept(transport) == 0
        told.set()
        await eventually(lambda: kept(transport) == 1)
        assert await bounded(get(transport, peer)) == b"hello"
        assert peer.accepted == 1


async def test_a_finished_response_that_goes_on_is_closed_and_not_kept_meanwhile(transport: Transport) -> None:
    async def pour(wire: Wire) -> None:
        await wire.request()
        await wire.write(CHUNKED)
        while not wire.reader.at_eof():
            await wire.write(b"10000\r\n" + bytes(65536) + b"\r\n")
            sent.append(65536)

    sent: list[int] = []
    async with served_by(pour) as peer:
        _, exchange = await bounded(ask(transport, peer))
        await eventually(lambda: exchange._size > HIGH_WATER)
        exchange.finish(0.3)
        before = len(sent)
        await eventually(lambda: peer.connections == 0)
        assert not exchange._body and len(sent) > before + 10 and in_use(transport) == 0


async def test_a_response_that_is_complete_is_finished_at_once(transport: Transport) -> None:
    async with served_by(hello) as peer:
        _, exchange = await bounded(ask(transport, peer))
        await eventually(lambda: kept(transport) == 1)
        exchange.finish(0.0)
        await exchange.aclose()
        await turns(3)
        assert await bounded(get(transport, peer)) == b"hello"
        assert peer.accepted == 1


# Cancelling


async def test_cancelling_at_any_turn_leaves_nothing(transport: Transport) -> None:
    async def script(wire: Wire) -> None:
        while await wire.request():
            await wire.write(CHUNKED, b"5\r\n", b"hello", b"\r\n", b"0\r\n\r\n")

    async with served_by(script) as peer, nothing_left_of(peer):
        await cancelled_at_every_turn(transport, peer, 200)


async def test_cancelling_while_a_long_request_is_sent_leaves_nothing(transport: Transport) -> None:
    async with served_by(hello) as peer, nothing_left_of(peer):
        await cancelled_at_every_turn(transport, peer, 50, method="POST", body=bytes(4 * MEGABYTE))
