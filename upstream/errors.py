"""The errors of upstream, each named by its cause.

    UpstreamError           the base: `failure` has a message for people, and whether another try makes sense
    |- NotConfigured        the service has no API key
    |- UpstreamRefused      upstream answered with an error, before the stream or inside it
    |- UpstreamWithoutText  upstream answered with something other than text
    |- UpstreamBroken       the connection broke before the answer was whole
    |  `- UpstreamUnreadable    upstream answered with something other than a stream
    |- UpstreamUnreachable  there is no connection to upstream
    `- UpstreamTimeout      upstream took too long to connect
       `- UpstreamSilent    upstream has the request, and was silent for too long

This module does no I/O.
"""

import socket
import ssl

from result import Failure

NO_STREAM = "Upstream answered with something other than an event stream, so check OPENROUTER_BASE_URL."
NOT_JSON = "Upstream sent something that isn't JSON."


class UpstreamError(Exception):
    """Upstream gave no whole answer. The failure's message has no data of the account."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class NotConfigured(UpstreamError):
    """The service has no API key, which upstream asks for."""

    def __init__(self) -> None:
        message = "The service has no API key: set OPENROUTER_API_KEY and restart it."
        super().__init__(Failure(401, message, retryable=False))


class UpstreamRefused(UpstreamError):
    """Upstream answered with an error of its own."""


class UpstreamWithoutText(UpstreamError):
    """Upstream answered only with something other than text; `noun` names it, such as "images"."""

    def __init__(self, noun: str) -> None:
        message = f"The model answered with {noun} and without text, which is all that this service can pass on."
        super().__init__(Failure(502, message, retryable=False))


class UpstreamBroken(UpstreamError):
    """Upstream's answer is cut off, unreadable, or no stream at all; `quote` has upstream's words, redacted."""

    def __init__(self, message: str, quote: str = "") -> None:
        super().__init__(Failure(502, with_quote(message, quote), retryable=True))


class UpstreamUnreadable(UpstreamBroken):
    """Upstream has answered, but not in this protocol: upstream might generate and bill another try, too."""


class UpstreamUnreachable(UpstreamError):
    """There is no connection to upstream; `reason` or one of its causes says why."""

    def __init__(self, reason: BaseException | None = None) -> None:
        super().__init__(Failure(503, *_why_unreachable(reason)))


class UpstreamTimeout(UpstreamError):
    """Upstream took too long."""

    def __init__(self, message: str) -> None:
        super().__init__(Failure(504, message, retryable=True))


class UpstreamSilent(UpstreamTimeout):
    """Upstream has the request and may be generating: a person may ask again, but the relay must not do so itself."""

    def __init__(self) -> None:
        super().__init__("Upstream was silent for too long.")


def with_quote(sentence: str, quote: str) -> str:
    """Append upstream's words to a sentence, if there are any."""
    return f"{sentence.removesuffix('.')}: {quote}" if quote else sentence


def _why_unreachable(reason: BaseException | None) -> tuple[str, bool]:
    """Return a sentence and whether another try makes sense."""
    for _ in range(5):  # the exception, its cause, the cause of that, and so on
        match reason:
            case ssl.SSLCertVerificationError(verify_code=62 | 64):  # the certificate names another host or address
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
