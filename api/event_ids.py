"""The ids of a stream's events: a message, and how much of it its reader has. Clients send them back as they came."""

import re

_EVENT_ID = re.compile(r"([0-9a-f-]{36}):(end|[0-9]{1,9})")


def event_id(message_id: str, position: int | None) -> str:
    """The id of the event behind which a reader is at `position` (in characters), None: behind the last event."""
    return f"{message_id}:{'end' if position is None else position}"


def place_of(event_id: str) -> tuple[str, int | None] | None:
    """The message and the position that an id tells; None if it isn't one."""
    match = _EVENT_ID.fullmatch(event_id)
    return (match[1], None if match[2] == "end" else int(match[2])) if match else None
