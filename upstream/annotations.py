"""The sources that an answer cites, within bounds: https://openrouter.ai/docs/features/web-search

`{"type": "url_citation", "url_citation": {"url", "title", "start_index", "end_index", "content"}}`, or the same without
the inner object. `content` is a page's text, which nobody shows: it is never kept.
"""

import json
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from upstream.redaction import encodable
from upstream.values import Citation

MAX_CITATIONS = 100
MAX_BYTES = 40_000  # of all, as a JSON list in ASCII
MAX_URL_CHARS = 2_048
MAX_TITLE_CHARS = 300
MAX_LOOKED_AT = 1_000  # of one list

_LINK = re.compile(r"https?://\S", re.IGNORECASE)
_LARGEST_INDEX = 2**53  # that every JSON parser reads as it is


class Citations:
    """The citations of one answer, in the order in which they came."""

    def __init__(self) -> None:
        self._kept: dict[str, Citation] = {}  # by their JSON: exact repeats occur
        self._size = 0

    def take(self, annotations: object) -> Sequence[Citation] | None:
        """All that are kept once these are taken, None if there are none; what is beyond the bounds is left out."""
        for annotation in islice(annotations, MAX_LOOKED_AT) if isinstance(annotations, list) else ():
            if isinstance(annotation, dict) and (citation := _citation(annotation)):
                self._keep(citation)
        return list(self._kept.values()) or None

    def _keep(self, citation: Citation) -> None:
        text = json.dumps(citation)
        size = self._size + len(text) + len(", ")  # of the list, whose brackets make up for the last comma
        if text not in self._kept and len(self._kept) < MAX_CITATIONS and size <= MAX_BYTES:
            self._kept[text] = citation
            self._size = size


def _citation(annotation: dict[str, Any]) -> Citation | None:
    inner = annotation.get("url_citation")
    fields = inner if isinstance(inner, dict) else annotation
    url, title = _text(fields.get("url")), _text(fields.get("title"))
    if annotation.get("type") != "url_citation" or len(url) > MAX_URL_CHARS or not _LINK.match(url):
        return None
    start, end = _span(fields.get("start_index"), fields.get("end_index"))
    shown = title[:MAX_TITLE_CHARS] if title.strip() else None
    return Citation(type="url_citation", url=url, title=shown, start_index=start, end_index=end)


def _text(value: object) -> str:
    return encodable(value) if isinstance(value, str) else ""


def _span(start: object, end: object) -> tuple[int, int] | tuple[None, None]:
    # `type`, for `True` is an int, too. Some providers say 0 and 0 for what they don't know.
    if type(start) is int and type(end) is int and 0 <= start < end <= _LARGEST_INDEX:
        return start, end
    return None, None
