"""The rows of the table, and what the service is held to in each."""

from dataclasses import dataclass

from benchmarks.results import Results
from benchmarks.subjects import NAIVE, NGINX, SERVICE


@dataclass(frozen=True)
class Target:
    """A limit on a figure, or on its ratio to another subject's."""

    limit: float
    of: str | None = None
    at_least: bool = False
    unit: str = ""

    def value(self, results: Results, figure: str) -> float | None:
        """The figure that is held against the limit; None if it wasn't measured."""
        return results.ratio(figure, SERVICE, self.of) if self.of else results.median(figure, SERVICE)

    def met(self, value: float) -> bool:
        """Whether this value keeps to the limit."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        if self.of and self.limit == 1:
            return f"{'above' if self.at_least else 'below'} {self.of}'s"
        whose = f" of {self.of}'s" if self.of else ""
        limit = f"1/{1 / self.limit:.0f}" if self.limit <= 0.125 else f"{self.limit:g}"
        return f"{'at least' if self.at_least else 'at most'} {limit}{self.unit}{whose}"


@dataclass(frozen=True)
class Row:
    """A figure, where it is taken, what it is called, how its values are shown, and the service's targets."""

    at: str
    name: str
    figure: str
    shown: str
    targets: tuple[Target, ...] = ()


def _rows_of_a_crowd(at: str, size: int) -> tuple[Row, ...]:
    median = (Target(0.5, unit=" ms"), Target(1, NAIVE))
    return (
        Row(at, "CPU a token, µs", f"cpu_{size}", "{:.0f}", (Target(0.80, NAIVE),)),
        Row(at, "added to each token, median, ms", f"added_{size}", "{:.2f}", median),
        Row(at, "added to each token, p99, ms", f"p99_{size}", "{:.2f}", (Target(1, NAIVE),)),
    )


_FULL_SPEED = (Target(5, NAIVE, at_least=True), Target(1, NGINX, at_least=True))
_FIRST, _MODELS = "added to the first token, ms", "requests a second, of `GET /`'s"
_PAGE, _HEALTH = "CPU of a page of 50, of an empty one's", "CPU of `/health`, of an empty one's"
ROWS = (
    *_rows_of_a_crowd("100 streams × 25 tokens/s", 100),
    *_rows_of_a_crowd("300 streams × 10 tokens/s", 300),
    Row("16 streams at full speed", "tokens a second", "speed_16", "{:,.0f}", _FULL_SPEED),
    Row("light load", _FIRST, "first_light", "{:.1f}", (Target(1 / 15, NAIVE),)),
    Row("100 × 25 under way", _FIRST, "first_100", "{:.1f}", (Target(1 / 12, NAIVE),)),
    Row("500 open streams", "resident memory a stream, KiB", "memory_500", "{:.0f}", (Target(60, unit=" KiB"),)),
    Row("10 to 1,000 streams, 500 tokens/s", "CPU a token, highest of lowest", "flat", "{:.2f}", (Target(1.2),)),
    Row("1,000 messages", "more to the first token, ms", "first_history", "{:.1f}", (Target(3, unit=" ms"),)),
    Row("the full store", "CPU a request of a chat, µs", "cpu_request", "{:.0f}", (Target(0.4, NAIVE),)),
    Row("the full store", "CPU a plain request, µs", "cpu_plain", "{:.0f}"),
    Row("the full store", _PAGE, "page_over_empty", "{:.2f}", (Target(1.5),)),
    Row("the full store", _HEALTH, "health_over_empty", "{:.2f}", (Target(1.5),)),
    Row("`GET /models`, gzipped", _MODELS, "models_over_root", "{:.2f}", (Target(0.8, at_least=True),)),
    Row("start", "until the first 200, s", "start", "{:.2f}", (Target(0.6, NAIVE),)),
)

HEADLINES = (
    ("CPU a token, 100 streams × 25 tokens/s, µs", ("cpu_100",)),
    ("added to each token, median / p99, ms", ("added_100", "p99_100")),
    ("tokens a second, 16 streams at full speed", ("speed_16",)),
    ("added to the first token, light load, ms", ("first_light",)),
    ("resident memory a stream, 500 open, KiB", ("memory_500",)),
)
"""The five rows of the first page: what each is called, and its figures."""
