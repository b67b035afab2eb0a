"""The service's metrics in the format of Prometheus, counted once for each request and each reply, not for each token.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format (version 0.0.4). No label is free text:
models are those of the models list, and routes are templates.
"""

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from result import Outcome

MAX_MODELS = 50  # models with a label of their own
METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE")  # the methods of the API
OTHER = "other"  # the label of all other models and methods

_FIRST_TOKEN = tuple(0.08 * 2**power for power in range(11))
_REPLY = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900)
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

GAUGES = {
    "conversations": "Conversations in the store.",
    "messages": "Messages in the store.",
    "store_bytes": "Bytes of text in the store.",
    "store_limit_bytes": "Bytes of text that the store takes, MAX_STORE_BYTES.",
    "readers": "Streams that are being sent.",
    "replies_in_progress": "Replies in progress.",
    "draining": "1 while the service is on its way out.",
}
_USAGE = {
    "input_tokens_total": ("Tokens that went to models, as upstream counted them.", "prompt_tokens"),
    "output_tokens_total": ("Tokens that models made.", "completion_tokens"),
    "cached_input_tokens_total": (
        "Tokens that went to models and were in a provider's cache.",
        "prompt_tokens_details.cached_tokens",
    ),
    "reasoning_tokens_total": ("Tokens that models made to think.", "completion_tokens_details.reasoning_tokens"),
    "cost_dollars_total": ("US dollars that upstream reported.", "cost"),
}
"""The counters of usage, each with its help text and the path of its figure in upstream's `usage`."""


class Metrics:
    """The counts of one service since its start."""

    def __init__(self, version: str, model_name: str) -> None:
        self.readers = 0  # streams that the server is sending
        self._version = version
        self._models = {model_name}
        self._requests = _Count("http_requests_total", "Requests answered.", "method", "route", "status")
        self._replies = _Count("replies_total", "Replies that ended.", "model", "status")
        self._failures = _Count("reply_failures_total", "Replies that failed, by the code of their error.", "code")
        self._retries = _Count("upstream_retries_total", "Tries after a failed one.", "model")
        self._usage = {name: _Count(name, about, "model") for name, (about, _) in _USAGE.items()}
        self._first_tokens = _Histogram("first_token_seconds", "Seconds to the first token.", _FIRST_TOKEN)
        self._ends = _Histogram("reply_seconds", "Seconds to the end of a reply.", _REPLY)

    def count_request(self, method: str, route: str | None, status: int) -> None:
        """Count a request when its response starts; `route` is a template, None for an unknown path."""
        self._requests.add(method if method in METHODS else OTHER, route or "none", str(status))

    def count_reply(self, outcome: Outcome) -> None:
        """Count a reply that has ended."""
        model = self._label(outcome)
        self._replies.add(model, outcome.status)
        if outcome.error:
            self._failures.add(str(outcome.error.code))
        self._retries.add(model, by=outcome.retries)
        usage = json.loads(outcome.report.usage or "null")
        for name, (_, path) in _USAGE.items():
            self._usage[name].add(model, by=_figure(usage, path))
        if outcome.first_token is not None:
            self._first_tokens.observe(model, outcome.first_token)
        self._ends.observe(model, outcome.end)

    def text(self, gauges: Mapping[str, float]) -> str:
        """Return all metrics; `gauges` has the current value of each of `GAUGES` but `readers`."""
        return "".join(f"{line}\n" for line in self._lines({**gauges, "readers": self.readers}))

    def _lines(self, gauges: Mapping[str, float]) -> Iterator[str]:
        yield from _head("build_info", "gauge", "The version that runs.")
        yield _sample("build_info", {"version": self._version}, 1)
        for name, about in GAUGES.items():
            yield from _head(name, "gauge", about)
            yield _sample(name, {}, gauges[name])
        families: list[_Count | _Histogram] = [self._requests, self._replies, self._failures, self._retries]
        for family in [*families, *self._usage.values(), self._first_tokens, self._ends]:
            yield from family.lines()

    def _label(self, outcome: Outcome) -> str:
        """Return the model if it is one of the first that the list has: clients may invent others."""
        if outcome.is_listed and len(self._models) < MAX_MODELS:
            self._models.add(outcome.model)
        return outcome.model if outcome.model in self._models else OTHER


class _Count:
    """A counter for each combination of labels."""

    def __init__(self, name: str, about: str, *labels: str) -> None:
        self._name, self._about, self._labels = name, about, labels
        self._counts: dict[tuple[str, ...], float] = {}

    def add(self, *values: str, by: float = 1) -> None:
        self._counts[values] = self._counts.get(values, 0) + by

    def lines(self) -> Iterator[str]:
        yield from _head(self._name, "counter", self._about)
        for values, count in self._counts.items():
            yield _sample(self._name, dict(zip(self._labels, values, strict=True)), count)


class _Histogram:
    """A histogram of times for each model; a bucket counts the times up to its bound."""

    def __init__(self, name: str, about: str, bounds: tuple[float, ...]) -> None:
        self._name, self._about, self._bounds = name, about, bounds
        self._buckets: dict[str, Counter[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, model: str, seconds: float) -> None:
        self._buckets.setdefault(model, Counter())[bisect_left(self._bounds, seconds)] += 1
        self._sums[model] = self._sums.get(model, 0.0) + seconds

    def lines(self) -> Iterator[str]:
        yield from _head(self._name, "histogram", self._about)
        bounds = [*map(str, self._bounds), "+Inf"]
        for model, buckets in self._buckets.items():
            for bound, count in zip(bounds, accumulate(buckets[i] for i in range(len(bounds))), strict=True):
                yield _sample(f"{self._name}_bucket", {"model": model, "le": bound}, count)
            yield _sample(f"{self._name}_sum", {"model": model}, self._sums[model])
            yield _sample(f"{self._name}_count", {"model": model}, buckets.total())


def _figure(usage: Any, path: str) -> float:
    """Return a number of upstream's `usage`; 0 if there is none, or if it can't be added to a counter."""
    for name in path.split("."):
        usage = usage.get(name) if isinstance(usage, Mapping) else None
    is_number = isinstance(usage, (int, float)) and not isinstance(usage, bool)
    return usage if is_number and usage > 0 else 0


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP chat_relay_{name} {about}"
    yield f"# TYPE chat_relay_{name} {kind}"


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    pairs = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in labels.items())
    return f"chat_relay_{name}{{{pairs}}} {value}" if pairs else f"chat_relay_{name} {value}"
