"""What `GET /metrics` says: read back with the parser of Prometheus' own client."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from openrouter import Timers
from result import NO_REPORT, Failure, Outcome, Report
from serving.metrics import MAX_MODELS, Metrics
from settings import VERSION
from tests.support.engines import on_each_engine
from tests.support.problems import assert_problem
from tests.support.relay import Relay, serving
from tests.support.upstream import USAGE as REPORTED
from tests.support.upstream import Gate, ScriptedUpstream, answer, gated, status
from tests.support.waiting import eventually

GAUGES = {
    "conversations": 1,
    "messages": 2,
    "store_bytes": 3,
    "store_limit_bytes": 4,
    "replies_in_progress": 5,
    "draining": 0,
}
BARE = {"Accept": "text/plain"}
USAGE: dict[str, Any] = {
    "prompt_tokens": 18,
    "completion_tokens": 204,
    "cost": 0.5,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 187},
}
REPLY = Outcome("m", True, "complete", None, Report(usage=json.dumps(USAGE)), 1, 0.3, 4.0)


def samples(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by name and labels, in the order of the labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.name.startswith("chat_relay_")
            name = sample.name.removeprefix("chat_relay_")
            found.setdefault(name, {})[tuple(sample.labels.values())] = sample.value
    return found


def counted(*outcomes: Outcome, model_name: str = "m") -> dict[str, dict[tuple[str, ...], float]]:
    """What is said after these replies."""
    metrics = Metrics("1.2.3", model_name)
    for outcome in outcomes:
        metrics.count_reply(outcome)
    return samples(metrics.text(GAUGES))


def test_every_family_has_its_kind_its_help_and_one_place() -> None:
    metrics = Metrics("1.2.3", "m")
    metrics.count_reply(REPLY)
    families = {f.name: (f.type, f.documentation) for f in text_string_to_metric_families(metrics.text(GAUGES))}
    gauges = {"build_info", "readers", *GAUGES}
    histograms = {"first_token_seconds", "reply_seconds"}
    counters = {"replies", "reply_failures", "upstream_retries", "http_requests", "cost_dollars"}
    counters |= {"input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens"}
    kinds = {f"chat_relay_{name}": "gauge" for name in gauges}
    kinds |= {f"chat_relay_{name}": "histogram" for name in histograms}
    kinds |= {f"chat_relay_{name}": "counter" for name in counters}
    assert {name: kind for name, (kind, _) in families.items()} == kinds
    assert all(about.endswith(".") for _, about in families.values())
    assert metrics.text(GAUGES).count("# TYPE") == len(kinds)


def test_gauges_are_those_of_the_moment() -> None:
    metrics = Metrics("1.2.3", "m")
    metrics.readers = 2
    said = samples(metrics.text(GAUGES))
    assert {name: said[name][()] for name in GAUGES} == GAUGES
    assert (said["build_info"], said["readers"]) == ({("1.2.3",): 1}, {(): 2})


def test_a_reply_counts_once_with_its_tokens_its_cost_and_its_times() -> None:
    broken = Failure(502, "Broken", retryable=True)
    failed = Outcome("m", True, "failed", broken, NO_REPORT, retries=0, first_token=None, end=4.0)
    said = counted(REPLY, REPLY, failed)
    assert said["replies_total"] == {("m", "complete"): 2, ("m", "failed"): 1}
    assert said["reply_failures_total"] == {("502",): 1}
    assert said["upstream_retries_total"] == {("m",): 2}
    names = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "cost_dollars")
    assert [said[f"{name}_total"][("m",)] for name in names] == [36, 408, 6, 374, 1.0]
    assert (said["first_token_seconds_count"], said["first_token_seconds_sum"]) == ({("m",): 2}, {("m",): 0.6})
    assert (said["reply_seconds_count"], said["reply_seconds_sum"]) == ({("m",): 3}, {("m",): 12.0})


def test_the_buckets_are_cumulative_and_a_bound_belongs_to_its_bucket() -> None:
    said = counted(*(replace(REPLY, first_token=seconds, end=seconds) for seconds in (0.01, 0.08, 0.5, 100, 1000)))
    firsts = [0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
    counts = [2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 5]
    bounds = [*map(str, firsts), "+Inf"]
    assert said["first_token_seconds_bucket"] == {("m", bound): n for bound, n in zip(bounds, counts, strict=True)}
    ends = ["0.5", "1", "2", "5", "10", "20", "30", "60", "120", "300", "600", "900", "+Inf"]
    counts = [3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 5]
    assert said["reply_seconds_bucket"] == {("m", bound): n for bound, n in zip(ends, counts, strict=True)}


@pytest.mark.parametrize("figure", [None, "5", -1, True, [], {"a": 1}], ids=repr)
def test_what_is_no_figure_counts_nothing(figure: object) -> None:
    usage = dict.fromkeys(USAGE, figure)
    said = counted(replace(REPLY, report=Report(usage=json.dumps(usage))), REPLY)
    assert (said["input_tokens_total"], said["cost_dollars_total"]) == ({("m",): 18}, {("m",): 0.5})
    assert said["reasoning_tokens_total"] == {("m",): 187}


def test_a_model_that_the_list_does_not_know_is_other_but_for_the_one_of_the_settings() -> None:
    invented = replace(REPLY, model="invented", is_listed=False)
    unlisted = replace(REPLY, is_listed=False)
    assert counted(invented, REPLY, unlisted)["replies_total"] == {("other", "complete"): 1, ("m", "complete"): 2}


def test_fifty_models_are_told_apart_the_one_of_the_settings_among_them() -> None:
    said = counted(*(replace(REPLY, model=f"m{n}") for n in range(60)), replace(REPLY, model="m0"), REPLY)
    replies = said["replies_total"]
    assert len(replies) == MAX_MODELS + 1
    assert (replies[("other", "complete")], replies[("m0", "complete")], replies[("m", "complete")]) == (11, 2, 1)
    assert len(said["reply_seconds_count"]) == len(replies)


def test_labels_are_escaped() -> None:
    name = 'a"b\\c\\n\nd'
    assert counted(replace(REPLY, model=name), model_name=name)["replies_total"] == {(name, "complete"): 1}


def test_requests_are_counted_by_method_route_and_status() -> None:
    metrics = Metrics("1.2.3", "m")
    for code in (200, 200, 404):
        metrics.count_request("GET", "/conversations/{id}", code)
    said: Mapping[tuple[str, ...], float] = samples(metrics.text(GAUGES))["http_requests_total"]
    assert said == {("GET", "/conversations/{id}", "200"): 2, ("GET", "/conversations/{id}", "404"): 1}


def test_every_line_is_a_comment_or_a_sample_and_ends() -> None:
    metrics = Metrics("1.2.3", "m")
    metrics.count_reply(REPLY)
    text = metrics.text(GAUGES)
    pattern = r'(# (HELP|TYPE) chat_relay_\w+ .+|chat_relay_\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [0-9.e+-]+)\n'
    assert "".join(match[0] for match in re.finditer(pattern, text)) == text


# The endpoint


async def scraped(relay: Relay, **headers: str) -> dict[str, dict[tuple[str, ...], float]]:
    """What a scrape brings."""
    response = await relay.client.get("/metrics", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return samples(response.text)


@on_each_engine
async def test_the_gauges_are_those_of_the_service(upstream: ScriptedUpstream) -> None:
    upstream.play(gated(gate := Gate(), "Hello"))
    async with serving(upstream, max_store_bytes=5_000) as relay:
        conversation_id = await relay.ask("Hi!")
        path = f"/conversations/{conversation_id}/stream"
        async with relay.stream(conversation_id) as reader, relay.client.stream("GET", path, headers=BARE) as bare:
            gate.open()
            await reader.until("Hello")
            assert bare.headers["content-type"].startswith("text/plain")
            said = await scraped(relay)
            gate.open()
            await reader.whole()
        gauges = ("conversations", "messages", "store_bytes", "store_limit_bytes", "replies_in_progress", "draining")
        assert [said[name][()] for name in gauges] == [1, 2, 8, 5_000, 1, 0]
        assert (said["readers"], said["build_info"]) == ({(): 2}, {(VERSION,): 1})

        async def nobody_reads() -> bool:
            return (await scraped(relay))["readers"] == {(): 0}

        await eventually(nobody_reads)


async def test_a_reply_is_counted_when_it_ends_under_the_model_that_was_asked_for(upstream: ScriptedUpstream) -> None:
    upstream.queue(status(503), answer(reasoning="Hm"), answer(), answer(), status(404), answer())
    async with serving(upstream, timers=Timers(retries=(0.0,)), model_name="mine/own") as relay:
        await relay.client.get("/models")
        for model in (None, "test/one", "invented", "test/two", None):
            await relay.read(await relay.ask(model=model))
        said = await scraped(relay)
    assert said["replies_total"] == {
        ("mine/own", "complete"): 2,
        ("test/one", "complete"): 1,
        ("other", "complete"): 1,
        ("test/two", "failed"): 1,
    }
    assert said["reply_failures_total"] == {("404",): 1}
    assert said["upstream_retries_total"][("mine/own",)] == 1
    assert said["output_tokens_total"][("mine/own",)] == 2 * REPORTED["completion_tokens"]
    assert said["cost_dollars_total"][("test/two",)] == 0
    assert said["first_token_seconds_count"][("mine/own",)] == 2
    assert ("test/two",) not in said["first_token_seconds_count"]
    assert 0 < said["first_token_seconds_sum"][("mine/own",)] <= said["reply_seconds_sum"][("mine/own",)] < 60


async def test_without_a_models_list_only_the_model_of_the_settings_has_a_name(
    upstream: ScriptedUpstream, relay: Relay
) -> None:
    await relay.read(await relay.ask(model="test/one"))
    assert (await scraped(relay))["replies_total"] == {("other", "complete"): 1}


@on_each_engine
async def test_stopped_and_deleted_replies_are_counted_as_stopped(upstream: ScriptedUpstream, relay: Relay) -> None:
    for path in ("/stream", ""):
        upstream.play(gated(Gate(), "never sent"))
        conversation_id = await relay.ask()
        async with relay.stream(conversation_id) as reader:
            await reader.next()
            await relay.client.delete(f"/conversations/{conversation_id}{path}")
            await reader.whole()
    assert (await scraped(relay))["replies_total"] == {("openrouter/auto", "stopped"): 2}


async def test_requests_are_counted_by_the_template_of_their_route(upstream: ScriptedUpstream, relay: Relay) -> None:
    await relay.read(conversation_id := await relay.ask())
    await relay.client.head(f"/conversations/{conversation_id}/stream")
    await relay.client.get("/conversations/unknown")
    for method, path in (("GET", "/nowhere"), ("PUT", "/conversations"), ("PROPFIND", "/"), ("GET", "/metrics")):
        await relay.client.request(method, path)
    await relay.client.post("/conversations", headers={"Origin": "https://evil.example"})
    preflight = {"Origin": "http://localhost:5173", "Access-Control-Request-Method": "PATCH"}
    await relay.client.options("/conversations/x", headers=preflight)
    assert (await scraped(relay))["http_requests_total"] == {
        ("POST", "/conversations", "201"): 1,
        ("POST", "/conversations/{id}/messages", "201"): 1,
        ("GET", "/conversations/{id}/stream", "200"): 1,
        ("HEAD", "/conversations/{id}/stream", "200"): 1,
        ("GET", "/conversations/{id}", "404"): 1,
        ("GET", "none", "404"): 1,
        ("other", "/conversations", "405"): 1,
        ("other", "/", "405"): 1,
        ("GET", "/metrics", "200"): 1,
        ("POST", "/conversations", "403"): 1,
        ("other", "/conversations/{id}", "200"): 1,
    }


async def test_a_stream_is_counted_when_its_head_goes_out(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(gated(gate := Gate(), "one"))
    conversation_id = await relay.ask()
    async with relay.stream(conversation_id) as reader:
        await reader.next()
        said = await scraped(relay)
        gate.open_wide()
        await reader.whole()
    streams = ("GET", "/conversations/{id}/stream", "200")
    assert said["http_requests_total"][streams] == (await scraped(relay))["http_requests_total"][streams] == 1


async def test_the_token_opens_it_under_any_host_and_to_no_page(upstream: ScriptedUpstream) -> None:
    """Prometheus scrapes pods by their addresses."""
    token, address = {"Authorization": "Bearer t-1"}, {"Host": "10.1.2.3:8001"}
    async with serving(upstream, auth_token="t-1") as relay:
        get = relay.client.get
        assert (await get("/metrics", headers=token | address)).status_code == 200
        assert_problem(await get("/metrics"), 401, "AUTH_TOKEN")
        assert_problem(await get("/metrics", headers={"Authorization": "Bearer t-2"} | address), 403, "ALLOWED_HOSTS")
        assert_problem(await get("/metrics", headers=token | {"Origin": "https://evil.example"}), 403, "CORS_ORIGINS")
        assert_problem(await get("/conversations", headers=token | address), 403, "ALLOWED_HOSTS")
    async with serving(upstream) as relay:
        assert (await relay.client.get("/metrics")).status_code == 200
        assert_problem(await relay.client.get("/metrics", headers=token | address), 403, "ALLOWED_HOSTS")


async def test_no_id_no_title_and_no_text_is_ever_in_it(upstream: ScriptedUpstream, relay: Relay) -> None:
    upstream.play(answer("MARK text", reasoning="MARK thought", usage={"MARK": "MARK", "cost": 1}))
    made = await relay.conversation(id="MARK-id", title="MARK", system_prompt="MARK", options={"MARK": 1})
    await relay.say(made["id"], "MARK", id="MARK-q", model="MARK/model")
    await relay.read(made["id"])
    await relay.client.get("/conversations/MARK?cursor=MARK", headers={"X-Request-ID": "MARK"})
    assert "MARK" not in (await relay.client.get("/metrics")).text
