"""The engine that tests run on, as `--store` names it: each service and each store has conversations of its own."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

ENGINES = ("memory", "sqlite")

_places: list[str] = []  # what new URLs begin with, the innermost last


def new_store_url() -> str:
    """A `STORE_URL` that nobody else has."""
    return f"{_places[-1]}{uuid4()}.db" if _places and _places[-1] else ""


@contextmanager
def engine(name: str) -> Iterator[None]:
    """New URLs are of this engine's kind."""
    with tempfile.TemporaryDirectory() as folder:
        _places.append({"memory": "", "sqlite": f"sqlite:///{folder}/"}[name])
        try:
            yield
        finally:
            _places.pop()
