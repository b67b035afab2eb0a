"""Problem responses, the form of every error that the service itself reports: https://www.rfc-editor.org/rfc/rfc9457

This module doesn't know what can go wrong.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

LINGER_TIMEOUT = 5.0  # seconds for a client to send the rest of a refused body


def problem(
    status: int, detail: str, *, headers: Mapping[str, str] | None = None, errors: list[dict[str, str]] | None = None
) -> Response:
    """Build a problem response; `errors` lists a body's bad fields, each as `{"field", "message"}`."""
    body: dict[str, Any] = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    body |= {"detail": detail} | ({"errors": errors} if errors else {})
    return Response(json.dumps(body, indent=2) + "\n", status, headers, "application/problem+json")


class Lingering(Response):
    """Sends `response` at once, but ends it only when the client has sent its body, or after `LINGER_TIMEOUT` seconds.

    A server that closes at once may reset the connection before the client has read the response (RFC 9112, 9.6).
    """

    def __init__(self, response: Response) -> None:
        super().__init__(response.body, response.status_code, response.headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, read and discard the rest of the request, and close."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):  # the response ends even if the client is still sending
            async with asyncio.timeout(LINGER_TIMEOUT):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body"})
