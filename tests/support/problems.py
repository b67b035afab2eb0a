"""The one assertion about error responses."""

from http import HTTPStatus
from typing import Any

import httpx


def assert_problem(response: httpx.Response, status: int, *contains: str) -> dict[str, Any]:
    """Assert an RFC 9457 problem of this status whose `detail` has every string of `contains`; returns its members."""
    assert response.status_code == status, f"{response.status_code} {response.text}"
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert set(problem) == {"type", "title", "status", "detail"} | ({"errors"} if status == 422 else set())
    assert (problem["type"], problem["title"]) == ("about:blank", HTTPStatus(status).phrase)
    assert problem["status"] == status
    assert isinstance(problem["detail"], str) and problem["detail"].strip()
    for text in contains:
        assert text in problem["detail"]
    if status == 422:
        _assert_errors(problem["errors"])
    return problem


def _assert_errors(errors: list[dict[str, str]]) -> None:
    assert errors
    for error in errors:
        assert set(error) == {"field", "message"}
        assert isinstance(error["field"], str)
        assert error["message"].strip()
