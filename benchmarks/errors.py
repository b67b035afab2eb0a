"""The errors of a run.

BenchmarkError
├── NotInstalled       a subject can't be had here: it is left out, with the reason
├── DidNotStart        a subject's process ended, or never answered
├── UnexpectedAnswer   a status or a shape that the benchmark can't go on with
└── WrongText          a stream's text isn't, character for character, what upstream sent: the run is worth nothing
"""


class BenchmarkError(Exception):
    """Anything that ends a measurement; its text is for the person at the terminal."""


class NotInstalled(BenchmarkError):
    """A subject can't be had here."""


class DidNotStart(BenchmarkError):
    """A subject's process ended, or never answered."""


class UnexpectedAnswer(BenchmarkError):
    """A subject answered what the benchmark can't go on with."""


class WrongText(BenchmarkError):
    """A stream's text isn't exactly what upstream sent."""
