"""Which of two forms a client wants: the `Accept` header (https://www.rfc-editor.org/rfc/rfc9110#section-12.5.1)."""

import re
from typing import NamedTuple

EVENTS, TEXT, JSON = "text/event-stream", "text/plain", "application/json"


class _Range(NamedTuple):
    form: str
    quality: float


def wants_events(accept: str) -> bool:
    """Whether a question is to be answered with its reply's stream: it is named, and JSON isn't wanted more."""
    ranges = _ranges(accept)
    is_named = any(form == EVENTS for form, _ in ranges)
    return is_named and 0 < _quality(ranges, EVENTS) >= _quality(ranges, JSON)


def wants_text(accept: str) -> bool:
    """Whether a stream is to be bare text: text is wanted more than events."""
    ranges = _ranges(accept)
    return _quality(ranges, TEXT) > _quality(ranges, EVENTS)


def _quality(ranges: list[_Range], form: str) -> float:
    """How much a form is wanted, from 0 to 1: what the most precise range says."""
    for wanted in (form, f"{form.partition('/')[0]}/*", "*/*"):
        if qualities := [quality for name, quality in ranges if name == wanted]:
            return max(qualities)
    return 0.0


def _ranges(accept: str) -> list[_Range]:
    ranges = []
    for entry in (accept or "*/*").lower().split(","):
        form, _, parameters = entry.partition(";")
        told = re.search(r"(?:^|;)\s*q=\s*([01](?:\.\d*)?|\.\d+)\s*(?:;|$)", parameters)
        ranges.append(_Range(form.strip(), min(1.0, float(told[1])) if told else 1.0))
    return ranges
