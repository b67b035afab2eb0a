"""What can go wrong upstream, by who is to blame.

    UpstreamError           `failure`: what a person is told, and whether another try makes sense
    |- NotConfigured        this service: it has no API key
    |- UpstreamRefused      upstream answered with an error, before the stream or inside it
    |- UpstreamWithoutText  upstream answered with something other than text
    |- UpstreamBroken       the connection broke before the answer was whole
    |  `- UpstreamUnreadable    upstream answered with something other than a stream
    |- UpstreamUnreachable  there is no connection to upstream
    `- UpstreamTimeout      upstream took too long to connect
       `- UpstreamSilent    upstream has the request, and was silent for too long

Knows no I/O.
"""

import socket
import ssl

from result import Failure

NO_STREAM = "Upstream answered with something other than an event stream, so check OPENROUTER_BASE_URL."


class UpstreamError(Exception):
    """Upstream gave no whole answer. Nothing of an account stands in the failure's message."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class NotConfigured(UpstreamError):
    """The service lacks what upstream asks for."""

    def __init__(self) -> None:
        message = "The service has no API key: set OPENROUTER_API_KEY and restart it."
        super().__init__(Failure(401, message, retryable=False))


class UpstreamRefused(UpstreamError):
    """Upstream answered with an error of its own."""


class UpstreamWithoutText(UpstreamError):
    """Upstream answered with `what` alone."""

    def __init__(self, what: str) -> None:
        message = f"The model answered with {what} and without text, which is all that this service can pass on."
        super().__init__(Failure(502, message, retryable=False))


class UpstreamBroken(UpstreamError):
    """Upstream's answer can't be used: cut off, unreadable, or no stream at all. `said` are its words, redacted."""

    def __init__(self, message: str, said: str = "") -> None:
        words = f"{message.removesuffix('.')}: {said}" if said else message
        super().__init__(Failure(502, words, retryable=True))


class UpstreamUnreadable(UpstreamBroken):
    """Upstream has answered, but not in this protocol: another try might be generated, and billed, as well."""


class UpstreamUnreachable(UpstreamError):
    """No connection to upstream, for this reason, as far as it is known."""

    def __init__(self, reason: BaseException | None = None) -> None:
        message, retryable = _why_unreachable(reason)
        super().__init__(Failure(503, message, retryable))


class UpstreamTimeout(UpstreamError):
    """Upstream took too long."""

    def __init__(self, message: str) -> None:
        super().__init__(Failure(504, message, retryable=True))


class UpstreamSilent(UpstreamTimeout):
    """Upstream has the request, and may be generating: a person may ask again, the relay must not by itself."""

    def __init__(self) -> None:
        super().__init__("Upstream was silent for too long.")


def _why_unreachable(reason: BaseException | None) -> tuple[str, bool]:
    """A sentence, and whether another try makes sense."""
    for _ in range(5):  # what it was raised from, and so on
        match reason:
            case ssl.SSLCertVerificationError(verify_code=62 | 64):  # for another name, or address
                return "Upstream's certificate is that of another host: check OPENROUTER_BASE_URL.", False
            case ssl.SSLCertVerificationError():
                sentence = "Upstream's certificate isn't trusted. Where a proxy of your network inspects TLS, set "
                return f"{sentence}SSL_CERT_FILE to a PEM file with that proxy's certificate, too.", False
            case socket.gaierror():
                return "Upstream's name can't be resolved: check OPENROUTER_BASE_URL, a proxy's name and DNS.", True
            case ConnectionRefusedError():
                return "Upstream refuses the connection: check OPENROUTER_BASE_URL, and that a server runs there.", True
            case None:
                break
        reason = reason.__cause__ or reason.__context__
    return "Upstream can't be reached: check the network and OPENROUTER_BASE_URL.", True
