"""The engine that tests run on, as `--store` names it: each service and each store has conversations of its own."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from tests.support.servers import server

ENGINES = ("memory", "sqlite", "valkey")

_places: list[str] = []  # what new URLs begin with, the innermost last


def new_store_url() -> str:
    """A `STORE_URL` that nobody else has."""
    return _places[-1].format(uuid4()) if _places else ""


@contextmanager
def engine(name: str, program: str = "redis") -> Iterator[None]:
    """New URLs are of this engine's kind, and of this server where it needs one."""
    with _place(name, program) as place:
        _places.append(place)
        try:
            yield
        finally:
            _places.pop()


@contextmanager
def _place(name: str, program: str) -> Iterator[str]:
    if name == "memory":
        yield ""
    elif name == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/{{}}.db"
    else:
        with server(program) as running:
            yield f"{running.url}?prefix={{}}"
