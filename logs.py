"""Log lines: their form, the request's id in them, and tracebacks that give nothing away.

Ids, counts and states are logged, never a message's text, a key, or the text of an exception: it can quote both.
"""

import json
import logging
import traceback
from contextvars import ContextVar
from types import TracebackType

LOGGERS = ("server", "replies", "store", "openrouter")  # others, below WARNING, log headers and bodies

request_id: ContextVar[str] = ContextVar("request_id", default="")

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure(level: str, form: str) -> None:
    """Log to standard error, in the form `text` or `json`; uvicorn's lines too."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler])
    for name in LOGGERS:
        logging.getLogger(name).setLevel(level)
    for logger in (logging.getLogger("uvicorn"), logging.getLogger("uvicorn.access")):
        if logger.handlers:  # uvicorn's own form; without them the logger has been turned off
            logger.handlers.clear()
            logger.propagate = True
    logging.getLogger("uvicorn").setLevel(logging.INFO)
    for name in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).addFilter(_without_query)


def _without_query(record: logging.LogRecord) -> bool:
    # A path is one of uvicorn's arguments. Somebody will put a token into its query.
    if isinstance(record.args, tuple):
        record.args = tuple(
            value.partition("?")[0] if isinstance(value, str) and value.startswith("/") else value
            for value in record.args
        )
    return True


class TextFormatter(logging.Formatter):
    """A line a record, with the request's id at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s - %(name)s - %(levelname)s - %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line; a traceback follows it."""
        this_id = request_id.get()
        return super().formatMessage(record) + (f" [{this_id}]" if this_id else "")

    def formatException(self, ei: ExcInfo) -> str:
        """The traceback of a third party's record."""
        return outline(ei[1])


class JsonFormatter(logging.Formatter):
    """A JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get() or None,
            "traceback": outline(record.exc_info[1]) if record.exc_info else None,
        }
        return json.dumps({name: value for name, value in entry.items() if value is not None})


def outline(error: BaseException | None) -> str:
    """Where it failed, and with which exceptions; a traceback without their texts."""
    parts: list[str] = []
    while error is not None:
        stack = traceback.StackSummary.from_list(traceback.extract_tb(error.__traceback__))
        parts.insert(0, f"Traceback (most recent call last):\n{''.join(stack.format())}{type(error).__qualname__}")
        error = error.__cause__ or error.__context__
    return "\n\n".join(parts)
