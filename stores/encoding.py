"""A message as an engine keeps it outside of this process: a head in JSON, and its text.

Fields that a newer or older relay has and this one doesn't know are left out: records outlive versions.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from stores.records import Failure, Message, Transcript

_FIELDS = {field.name: None for field in fields(Message) if field.name != "transcript"}  # in their order


def encode(message: Message) -> tuple[str, str]:
    """Its head, in ASCII and without line ends, and its text, content and reasoning as they came."""
    head: dict[str, Any] = {name: value for name in _FIELDS if (value := getattr(message, name)) is not None}
    if message.error:
        head["error"] = asdict(message.error)
    text, switches = message.transcript.parts()
    if switches:
        head["switches"] = switches
    return json.dumps(head, separators=(",", ":")), text


def decode(head: Mapping[str, Any], text: str) -> Message:
    """The message again; one that is `streaming` has a transcript that grows."""
    known = {name: value for name, value in head.items() if name in _FIELDS}
    if "error" in known:
        known["error"] = Failure(**known["error"])
    transcript = Transcript.of(text, head.get("switches", ()), grows=known["status"] == "streaming")
    return Message(transcript=transcript, **known)
