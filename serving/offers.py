"""Offers to speak another protocol, which are ignored: RFC 9110, section 7.8, leaves that to the server.

httptools takes what follows such a head for the other protocol, the request's body too. A stock Java `HttpClient` and
`curl --http2` offer `h2c` with their requests. Knows nothing of what is asked for.
"""

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Parser(httptools.HttpRequestParser):
    """A request with an offer is parsed again as if it had none.

    Its `on_headers_complete` and `on_message_complete` come twice: `makes_offer` is true the first time.
    """

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        super().__init__(protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._protocol = protocol

    @property
    def makes_offer(self) -> bool:
        """Whether the head that is complete offers another protocol; a CONNECT is no offer."""
        return self.should_upgrade() and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # uvicorn has nothing else
        """As httptools has it; `HttpParserUpgrade` is raised for a CONNECT alone."""
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if not self.makes_offer:
                raise
            rest = data[offer.args[0] :]
        else:
            return
        head = self._head_without_offer()
        self._protocol.parser = Parser(self._protocol)
        self._protocol.parser.feed_data(head + rest)

    def _head_without_offer(self) -> bytes:
        line = b"%b %b HTTP/%b" % (self.get_method(), self._protocol.url, self.get_http_version().encode())
        fields = [b"%b: %b" % field for field in self._protocol.headers if field[0] != b"upgrade"]
        return b"\r\n".join([line, *fields, b"", b""])
