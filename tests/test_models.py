"""The models list: fetched once however many ask, kept while it is fresh, and shown as stale while it can't be had."""

import asyncio
import gzip
import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from openrouter import Models, UpstreamError
from tests.support.adapter import adapter, assert_nothing_left_open, closed_port
from tests.support.scripts import Script, body, head, pauses, repeats, silence, status, steps, waits
from tests.support.upstream import MODELS, Gate, ScriptedUpstream, Wire
from tests.support.waiting import bounded, eventually
from upstream.errors import (
    UpstreamBroken,
    UpstreamRefused,
    UpstreamSilent,
    UpstreamTimeout,
    UpstreamUnreachable,
    UpstreamUnreadable,
)

HTML = {"Content-Type": "text/html"}
GZIPPED = {"Content-Type": "application/json", "Content-Encoding": "gzip"}


def shown(models: Models) -> dict[str, Any]:
    """The response's body, decoded; the gzipped one must be the same."""
    assert gzip.decompress(models.gzipped) == models.body
    body: dict[str, Any] = json.loads(models.body)
    assert set(body) == {"models", "cached", "stale", "fetched_at"}
    assert abs(datetime.fromisoformat(body["fetched_at"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert body["fetched_at"].endswith("Z")
    return body


def state(models: Models) -> tuple[bool, bool]:
    body = shown(models)
    return body["cached"], body["stale"]


async def test_the_models_are_fetched_once_for_50_that_ask_at_once(upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.models = steps(waits(gate), lambda wire: wire.respond(200, {"data": MODELS, "total_count": 2}))
    async with adapter(upstream.base_url) as openrouter:
        asking = [asyncio.create_task(openrouter.models()) for _ in range(50)]
        await gate.reached()
        gate.open()
        answers = await bounded(asyncio.gather(*asking))
        assert {answer.body for answer in answers} == {answers[0].body}
        assert shown(answers[0])["models"] == MODELS
        assert state(answers[0]) == (False, False)
    assert len(upstream.models_requests) == 1


async def test_the_models_are_served_from_the_cache_while_they_are_fresh(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="openrouter")
    async with adapter(upstream.base_url) as openrouter:
        first = await openrouter.models()
        second, third = await openrouter.models(), await openrouter.models()
    assert (state(first), state(second), state(third)) == ((False, False), (True, False), (True, False))
    assert shown(second) == shown(third) == shown(first) | {"cached": True}
    assert len(upstream.models_requests) == 1
    assert "Models fetched" in caplog.text and caplog.text.count("Models served from the cache") == 1  # the rest: DEBUG


async def test_the_models_are_fetched_again_when_they_are_no_longer_fresh(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url, models=0.0) as openrouter:
        first = await openrouter.models()
        upstream.models = [{"id": "test/new"}]
        second = await openrouter.models()
    assert shown(second)["models"] == [{"id": "test/new"}]
    assert (state(second), len(upstream.models_requests)) == ((False, False), 2)
    assert first.etag != second.etag


async def test_the_etag_is_that_of_the_list_whenever_and_by_whomever_it_is_fetched(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url, models=0.0) as one, adapter(upstream.base_url) as other:
        etags = {(await openrouter.models()).etag for openrouter in (one, one, other, other)}
    assert len(upstream.models_requests) == 3
    [etag] = etags
    assert etag.startswith('W/"') and etag.endswith('"')


async def test_the_old_models_are_served_as_stale_when_the_refresh_fails(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async with adapter(upstream.base_url, models=0.0) as openrouter:
        first = await openrouter.models()
        upstream.models = status(500)
        stale = [await openrouter.models() for _ in range(3)]
    assert [shown(models) for models in stale] == [shown(first) | {"cached": True, "stale": True}] * 3
    assert {models.etag for models in stale} == {first.etag}
    assert len(upstream.models_requests) == 2, "a failed refresh isn't repeated at once"
    assert caplog.text.count("models not fetched: UpstreamRefused, code 500") == 1


async def test_stale_models_are_refreshed_as_soon_as_that_works(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url, models=0.0, models_retry=0.0) as openrouter:
        await openrouter.models()
        upstream.models = status(503)
        assert state(await openrouter.models()) == (True, True)
        assert state(await openrouter.models()) == (True, True)
        upstream.models = [{"id": "test/new"}]
        fresh = await openrouter.models()
    assert (state(fresh), shown(fresh)["models"]) == ((False, False), [{"id": "test/new"}])
    assert len(upstream.models_requests) == 4


DEEP = b'{"data": [' + b'{"a":' * 100_000
UNUSABLE: dict[str, tuple[Script, type[UpstreamError], int]] = {
    "500": (status(500), UpstreamRefused, 500),
    "401": (status(401), UpstreamRefused, 401),
    "429 with a page": (status(429, "<html>", HTML), UpstreamRefused, 429),
    "a reset": (steps(Wire.reset), UpstreamBroken, 502),
    "a close": (steps(Wire.close), UpstreamBroken, 502),
    "silence": (silence, UpstreamSilent, 504),
    "a page": (status(200, "<html>", HTML), UpstreamUnreadable, 502),
    "a redirect": (status(307, "", {"Location": "/"}), UpstreamUnreadable, 502),
    "nothing": (status(200, b""), UpstreamUnreadable, 502),
    "text in an unknown encoding": (status(200, b"Hi", {"Content-Encoding": "zstd"}), UpstreamUnreadable, 502),
    "no list": (status(200, {"data": {"id": "x"}}), UpstreamBroken, 502),
    "null": (status(200, {"data": None}), UpstreamBroken, 502),
    "other fields": (status(200, {"models": MODELS}), UpstreamBroken, 502),
    "half a list": (status(200, b'{"data": [{"id": "x"}'), UpstreamUnreadable, 502),
    "NaN": (status(200, b'{"data": [{"id": "x", "price": NaN}]}'), UpstreamBroken, 502),
    "infinity": (status(200, b'{"data": [{"id": "x", "price": 1e999}]}'), UpstreamBroken, 502),
    "deep JSON": (status(200, DEEP), UpstreamUnreadable, 502),
    "too much": (status(200, {"data": ["x" * 3000]}), UpstreamBroken, 502),
    "a drip": (steps(head(content_type="application/json"), repeats(body(b" "), pauses(0.02))), UpstreamTimeout, 504),
    "bad gzip": (status(200, b"no gzip", GZIPPED), UpstreamUnreadable, 502),
}


@pytest.mark.parametrize(("script", "kind", "code"), UNUSABLE.values(), ids=UNUSABLE)
async def test_models_that_cannot_be_had_are_an_error_until_they_can(
    upstream: ScriptedUpstream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    script: Script,
    kind: type[UpstreamError],
    code: int,
) -> None:
    monkeypatch.setattr("openrouter.MAX_MODELS_BYTES", 2_000_000 if script is UNUSABLE["deep JSON"][0] else 2000)
    upstream.models = script
    async with adapter(upstream.base_url, connect=1.0, read=1.0) as openrouter:
        errors = await bounded(asyncio.gather(*(openrouter.models() for _ in range(5)), return_exceptions=True))
        assert [type(error) for error in errors] == [kind] * 5
        assert [error.failure.code for error in errors if isinstance(error, UpstreamError)] == [code] * 5
        assert caplog.text.count(f"models not fetched: {kind.__name__}, code {code}") == 1
        await assert_nothing_left_open(openrouter, upstream)
        upstream.models = list(MODELS)
        assert state(await openrouter.models()) == (False, False)


async def test_models_of_an_upstream_that_cannot_be_reached_are_a_503() -> None:
    async with adapter(f"http://127.0.0.1:{closed_port()}") as openrouter:
        with pytest.raises(UpstreamUnreachable) as caught:
            await openrouter.models()
    assert caught.value.failure.code == 503


async def test_models_that_cannot_be_fetched_in_time_to_connect_are_a_504(upstream: ScriptedUpstream) -> None:
    async with adapter(upstream.base_url.replace("http:", "https:"), connect=0.1) as openrouter:
        with pytest.raises(UpstreamTimeout):
            await bounded(openrouter.models())


async def test_a_list_is_passed_on_as_it_is(upstream: ScriptedUpstream) -> None:
    """Local servers have few fields, and any text can stand in a description."""
    odd = [{"id": "x", "name": "é 😀 \u2028 \ud83d", "pricing": {"prompt": "-1"}, "n": [1, 0.5, None, True]}, "text", 5]
    upstream.models = status(200, {"object": "list", "data": odd})
    async with adapter(upstream.base_url) as openrouter:
        models = await openrouter.models()
    assert shown(models)["models"] == odd and models.body.isascii()


async def test_a_list_that_stands_alone_is_one(upstream: ScriptedUpstream) -> None:
    """Together's is like that."""
    upstream.models = status(200, MODELS)
    async with adapter(upstream.base_url) as openrouter:
        assert shown(await openrouter.models())["models"] == MODELS


async def test_a_gzipped_list_is_understood(upstream: ScriptedUpstream) -> None:
    upstream.models = status(200, gzip.compress(json.dumps({"data": MODELS}).encode()), GZIPPED)
    async with adapter(upstream.base_url) as openrouter:
        assert shown(await openrouter.models())["models"] == MODELS


async def test_who_leaves_does_not_stop_the_fetch_for_others(upstream: ScriptedUpstream) -> None:
    gate = Gate()
    upstream.models = steps(waits(gate), lambda wire: wire.respond(200, {"data": MODELS}))
    async with adapter(upstream.base_url) as openrouter:
        leaves, stays = (asyncio.create_task(openrouter.models()) for _ in range(2))
        await gate.reached()
        leaves.cancel()
        await asyncio.wait([leaves])
        gate.open()
        assert shown(await bounded(stays))["models"] == MODELS
        assert state(await openrouter.models()) == (True, False)
    assert leaves.cancelled() and len(upstream.models_requests) == 1


async def test_closing_the_adapter_ends_a_fetch(upstream: ScriptedUpstream) -> None:
    upstream.models = silence
    async with adapter(upstream.base_url) as openrouter:
        asking = asyncio.create_task(openrouter.models())
        await eventually(lambda: upstream.models_requests)
        await bounded(openrouter.aclose())
        with pytest.raises(UpstreamError, match="restarting"):
            await bounded(asking)
        await eventually(lambda: upstream.connections == 0)


async def test_of_the_models_no_more_is_read_than_there_may_be(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openrouter.MAX_MODELS_BYTES", 1_000)
    upstream.models = [{"id": "x" * 100} for _ in range(20)]
    async with adapter(upstream.base_url) as openrouter:
        with pytest.raises(UpstreamBroken, match="more than 1000 bytes"):
            await bounded(openrouter.models())
