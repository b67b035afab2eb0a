"""The targets: what the service promises against the naive relay and, with the accelerator, against a gateway."""

from dataclasses import dataclass

from benchmarks.results import Results
from benchmarks.subjects import FAST, NAIVE, PORTKEY, SERVICE


@dataclass(frozen=True)
class Target:
    """A limit on a figure, or on its ratio to another subject's."""

    limit: float
    of: str | None = None
    at_least: bool = False
    unit: str = ""

    def value(self, results: Results, figure: str, subject: str) -> float | None:
        """What is held against the limit; None if it wasn't measured."""
        return results.ratio(figure, subject, self.of) if self.of else results.median(figure, subject)

    def met(self, value: float) -> bool:
        """Whether this value keeps to the limit."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        whose = f" of {self.of}'s" if self.of else ""
        limit = f"1/{1 / self.limit:.0f}" if self.limit <= 0.125 else f"{self.limit:g}"
        return f"{'at least' if self.at_least else 'at most'} {limit}{self.unit}{whose}"


@dataclass(frozen=True)
class Row:
    """A figure, what it is called, how its values are shown, and its targets for the two forms of the service."""

    at: str
    name: str
    figure: str
    shown: str
    plain: tuple[Target, ...]
    fast: tuple[Target, ...]

    def targets(self, subject: str) -> tuple[Target, ...]:
        """The targets of a form of the service."""
        return {SERVICE: self.plain, FAST: self.fast}[subject]


def _of_naive(limit: float, *, at_least: bool = False) -> Target:
    return Target(limit, NAIVE, at_least)


def _of_portkey(*, at_least: bool = False) -> Target:
    return Target(1, PORTKEY, at_least)


def _both(at: str, name: str, figure: str, shown: str, target: Target) -> Row:
    return Row(at, name, figure, shown, (target,), (target,))


_CPU = ((_of_naive(0.95),), (_of_naive(0.70), _of_portkey()))
_FULL_SPEED = ((_of_naive(3.5, at_least=True),), (_of_naive(12, at_least=True), _of_portkey(at_least=True)))
_LIGHT, _LOADED = ((_of_naive(1 / 10),), (_of_naive(1 / 13),)), ((_of_naive(1 / 9),), (_of_naive(1 / 25),))
_START = ((_of_naive(0.6),), (_of_naive(0.8),))

ROWS = (
    Row("100 streams × 25 tokens/s", "CPU a token, µs", "cpu_100", "{:.0f}", *_CPU),
    Row("300 streams × 10 tokens/s", "CPU a token, µs", "cpu_300", "{:.0f}", *_CPU),
    Row("16 streams at full speed", "tokens a second", "speed_16", "{:,.0f}", *_FULL_SPEED),
    Row("light load", "added to the first token, ms", "first_light", "{:.1f}", *_LIGHT),
    Row("100 × 25 under way", "added to the first token, ms", "first_100", "{:.1f}", *_LOADED),
    _both("500 open streams", "resident memory a stream, KiB", "memory_500", "{:.0f}", Target(60)),
    _both("10 to 1,000 streams, 500 tokens/s", "CPU a token, highest of lowest", "flat", "{:.2f}", Target(1.2)),
    _both("1,000 messages", "more to the first token, ms", "first_history", "{:.1f}", Target(3, unit=" ms")),
    _both("the full store", "CPU a request of a chat, µs", "cpu_request", "{:.0f}", _of_naive(0.4)),
    Row("the full store", "CPU a plain request, µs", "cpu_plain", "{:.0f}", (), ()),
    _both("the full store", "CPU of a page of 50, of an empty one's", "page_over_empty", "{:.2f}", Target(1.5)),
    _both("the full store", "CPU of `/health`, of an empty one's", "health_over_empty", "{:.2f}", Target(1.5)),
    _both(
        "`GET /models`, gzipped",
        "requests a second, of `GET /`'s",
        "models_over_root",
        "{:.2f}",
        Target(0.8, at_least=True),
    ),
    Row("start", "until the first 200, s", "start", "{:.2f}", *_START),
)
