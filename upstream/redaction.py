"""What of upstream's words may go on to clients: no key, account or quoted input, nothing that UTF-8 can't carry."""

import re
import sys
from collections.abc import Iterable
from typing import Any

LARGEST_FIGURE = 1e100  # that is kept: figures are summed up
PRIVATE = ("user_id", "raw", "flagged_input")  # the fields that tell of an account, or quote

_SURROGATE = re.compile("[\ud800-\udfff]")
_CREDENTIAL = re.compile(r"\b(?:g?sk|xai|user|org|key)[-_][\w.*-]{6,}")


def redacted(message: object, secrets: Iterable[str] = ()) -> str:
    """Upstream's own words without these secrets and whatever looks like one; at most 300 characters."""
    if not isinstance(message, str):
        return ""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):  # a longer one may contain a shorter one
        message = message.replace(secret, "[redacted]")
    return encodable(" ".join(_CREDENTIAL.sub("[redacted]", message).split())[:300])


def plain_usage(value: Any, depth: int = 3) -> Any:
    """`usage` as upstream reported it, less what isn't a plain figure: it is stored and sent as JSON."""
    if isinstance(value, dict):
        entries = [(str(name)[:64], part) for name, part in list(value.items())[:64] if name not in PRIVATE]
        kept = {sys.intern(encodable(name)): plain_usage(part, depth - 1) for name, part in entries}
        return kept if depth else None
    if isinstance(value, str):
        return redacted(value[:64])
    return value if isinstance(value, (int, float)) and abs(value) < LARGEST_FIGURE else None


def encodable(text: str) -> str:
    """`text` with surrogate pairs joined and lone halves replaced, so that it can be encoded as UTF-8."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
