"""Log lines: their format, their request ids, and tracebacks without secrets.

The log has ids, counts and states. It never has a message's text, a key, or an exception's text, which can quote both.
"""

import json
import logging
import traceback
from contextvars import ContextVar
from types import TracebackType

LOGGERS = ("server", "replies", "store", "openrouter")  # libraries' loggers show headers and bodies below WARNING

request_id: ContextVar[str] = ContextVar("request_id", default="")

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure(level: str, form: str) -> None:
    """Send our log lines and uvicorn's to standard error; `form` is `text` or `json`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler])
    for name in LOGGERS:
        logging.getLogger(name).setLevel(level)
    for logger in (logging.getLogger("uvicorn"), logging.getLogger("uvicorn.access")):
        if logger.handlers:  # a logger without handlers is one that uvicorn has turned off
            logger.handlers.clear()
            logger.propagate = True
    logging.getLogger("uvicorn").setLevel(logging.INFO)
    for name in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).addFilter(_without_query)


def _without_query(record: logging.LogRecord) -> bool:
    # uvicorn logs paths with their queries, and a client may put a token into a query.
    if isinstance(record.args, tuple):
        record.args = tuple(
            value.partition("?")[0] if isinstance(value, str) and value.startswith("/") else value
            for value in record.args
        )
    return True


class TextFormatter(logging.Formatter):
    """Writes each record as a line that ends with the request's id."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s - %(name)s - %(levelname)s - %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback may follow it."""
        this_id = request_id.get()
        return super().formatMessage(record) + (f" [{this_id}]" if this_id else "")

    def formatException(self, ei: ExcInfo) -> str:
        """Return the traceback of a library's log record."""
        return outline(ei[1])


class JsonFormatter(logging.Formatter):
    """Writes each record as a line with a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
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
    """Return the traceback of an exception and its causes, without their texts."""
    parts: list[str] = []
    while error is not None:
        stack = traceback.StackSummary.from_list(traceback.extract_tb(error.__traceback__))
        parts.insert(0, f"Traceback (most recent call last):\n{''.join(stack.format())}{type(error).__qualname__}")
        error = error.__cause__ or error.__context__
    return "\n\n".join(parts)
