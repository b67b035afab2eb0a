"""The rounds: every measurement on every subject in turn, again and again: the machine's moods hit all alike."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks import measure_requests, measure_streams
from benchmarks.bench import Bench, Sizes
from benchmarks.errors import BenchmarkError, WrongText
from benchmarks.measure_streams import Figures
from benchmarks.results import Results
from benchmarks.subjects import NAIVE, SERVICE, Subject

LONGEST = 240
"""Seconds after which a measurement of one subject is given up."""


@dataclass(frozen=True)
class Measurement:
    """A function, whom it concerns, and whether it is slow."""

    name: str
    run: Callable[[Bench, Subject], Awaitable[Figures]]
    concerns: Callable[[Subject], bool] = lambda subject: True
    slow: bool = False

    def due(self, sizes: Sizes, subject: Subject, number: int) -> bool:
        """Whether this round measures this subject."""
        return number < (sizes.slow_rounds if self.slow else sizes.rounds) and self.concerns(subject)


def _service(subject: Subject) -> bool:
    return subject.name == SERVICE


def _relays(subject: Subject) -> bool:
    return subject.name in (SERVICE, NAIVE)


MEASUREMENTS = (
    Measurement("crowds", measure_streams.crowds),
    Measurement("full-speed", measure_streams.full_speed),
    Measurement("light-load", measure_streams.light_load),
    Measurement("large-crowds", measure_streams.large_crowds, slow=True),
    Measurement("flatness", measure_streams.flatness, slow=True),
    Measurement("long-history", measure_streams.long_history, slow=True),
    Measurement("store", measure_requests.store, _relays, slow=True),
    Measurement("models", measure_requests.models, _service, slow=True),
    Measurement("start", measure_requests.start),
)


async def run(bench: Bench, subjects: list[Subject], measurements: list[Measurement], results: Results) -> None:
    """Fill in the results. A gateway that fails is left out, with the reason; a relay that fails ends the run."""
    for number in range(bench.sizes.rounds):
        for measurement in measurements:
            due = [subject for subject in subjects if measurement.due(bench.sizes, subject, number)]
            for subject in _turned(due, number):
                await _measure(bench, subject, measurement, number, results)


async def _measure(bench: Bench, subject: Subject, measurement: Measurement, number: int, results: Results) -> None:
    if (subject.name, measurement.name) in results.failures:
        return
    began = time.monotonic()
    try:
        async with asyncio.timeout(LONGEST):
            results.add(number, subject.name, await measurement.run(bench, subject))
    except (BenchmarkError, OSError) as error:
        reason = f"given up after {LONGEST} s" if isinstance(error, TimeoutError) else str(error)
        if _relays(subject) or isinstance(error, WrongText):
            raise BenchmarkError(f"{measurement.name} of {subject.name}: {reason}") from error
        results.failures[subject.name, measurement.name] = reason
    finally:
        seconds = time.monotonic() - began
        print(f"round {number + 1}: {measurement.name} of {subject.name}: {seconds:.1f} s", file=sys.stderr, flush=True)


def _turned(subjects: list[Subject], number: int) -> list[Subject]:
    """Another one goes first in each round."""
    first = number % len(subjects) if subjects else 0
    return subjects[first:] + subjects[:first]
