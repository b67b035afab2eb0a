"""Every figure of every round, and medians of them. Ratios are taken within a round, then their median."""

import statistics
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Results:
    """`samples[figure][subject][round]`; the relays' `python`; what is `missing` and the `failures`, with reasons.

    A key of `missing` is a subject, of `failures` a subject and a measurement.
    """

    python: str
    missing: dict[str, str]
    samples: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, number: int, subject: str, figures: dict[str, float]) -> None:
        """Keep what a measurement found in a round."""
        for figure, value in figures.items():
            self.samples.setdefault(figure, {}).setdefault(subject, {})[number] = value

    def median(self, figure: str, subject: str) -> float | None:
        """The median over the rounds; None if it wasn't measured."""
        rounds = self._rounds(figure, subject)
        return statistics.median(rounds.values()) if rounds else None

    def ratio(self, figure: str, subject: str, of: str) -> float | None:
        """The median of the rounds' ratios between two subjects; None if either wasn't measured."""
        ours, theirs = self._rounds(figure, subject), self._rounds(figure, of)
        ratios = [ours[number] / theirs[number] for number in ours.keys() & theirs.keys()]
        return statistics.median(ratios) if ratios else None

    def as_json(self) -> dict[str, Any]:
        """All of it: each figure's median and rounds by subject."""
        return {
            "figures": {
                figure: {
                    subject: {"median": statistics.median(rounds.values()), "rounds": list(rounds.values())}
                    for subject, rounds in by_subject.items()
                }
                for figure, by_subject in self.samples.items()
            },
            "missing": self.missing,
            "failures": [{"subject": s, "measurement": m, "reason": r} for (s, m), r in self.failures.items()],
        }

    def _rounds(self, figure: str, subject: str) -> dict[int, float]:
        return self.samples.get(figure, {}).get(subject, {})
