"""What `GET /metrics` says: read back with the parser of Prometheus' own client."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import MAX_MODELS, Metrics, Outcome

GAUGES = {
    "conversations": 1,
    "messages": 2,
    "store_bytes": 3,
    "store_limit_bytes": 4,
    "replies_in_progress": 5,
    "draining": 0,
}
USAGE: dict[str, Any] = {
    "prompt_tokens": 18,
    "completion_tokens": 204,
    "cost": 0.5,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 187},
}
REPLY = Outcome("m", True, "complete", None, USAGE, 1, 0.3, 4.0)


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
    with metrics.reading(), metrics.reading():
        said = samples(metrics.text(GAUGES))
    assert {name: said[name][()] for name in GAUGES} == GAUGES
    assert (said["build_info"], said["readers"]) == ({("1.2.3",): 1}, {(): 2})
    assert samples(metrics.text(GAUGES))["readers"] == {(): 0}


def test_a_reply_counts_once_with_its_tokens_its_cost_and_its_times() -> None:
    said = counted(REPLY, REPLY, replace(REPLY, status="failed", code=502, usage=None, first_token=None, retries=0))
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
    said = counted(replace(REPLY, usage=usage), REPLY)
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
    for status in (200, 200, 404):
        metrics.count_request("GET", "/conversations/{id}", status)
    said: Mapping[tuple[str, ...], float] = samples(metrics.text(GAUGES))["http_requests_total"]
    assert said == {("GET", "/conversations/{id}", "200"): 2, ("GET", "/conversations/{id}", "404"): 1}


def test_every_line_is_a_comment_or_a_sample_and_ends() -> None:
    metrics = Metrics("1.2.3", "m")
    metrics.count_reply(REPLY)
    text = metrics.text(GAUGES)
    pattern = r'(# (HELP|TYPE) chat_relay_\w+ .+|chat_relay_\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [0-9.e+-]+)\n'
    assert "".join(match[0] for match in re.finditer(pattern, text)) == text
