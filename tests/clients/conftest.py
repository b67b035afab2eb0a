"""These tests need libraries of their own, a JDK and Chromium: `make test-clients`, not `make test`."""

from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.clients.seeing")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave them out unless they are named."""
    return None if any("tests/clients" in argument for argument in config.args) else True
