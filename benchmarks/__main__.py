"""`python -m benchmarks`: measure, then print the table and write `results.json` and `results.svg` beside this file."""

import argparse
import asyncio
import resource
import signal
import sys
from pathlib import Path

import uvloop

from benchmarks import install, plot, report, rounds
from benchmarks.bench import FULL, QUICK, Bench, Sizes, cores
from benchmarks.errors import BenchmarkError
from benchmarks.processes import pin
from benchmarks.results import Results
from benchmarks.subjects import LITELLM, NAMES, SERVICE, available
from benchmarks.upstream import Upstream

QUICK_SUBJECTS = tuple(name for name in NAMES if name != LITELLM)


def main() -> int:
    """0 if everything was measured, 1 if a relay failed or a text was wrong."""
    options = _options()
    try:
        results = uvloop.run(_run(options))
    except BenchmarkError as error:
        print(f"The benchmark failed: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        print(f"The benchmark was interrupted ({error or 'Ctrl-C'}); nothing was written", file=sys.stderr)
        return 130
    print(report.markdown(results, _sizes(options)))
    is_whole = options.full and not (options.only or options.rows)
    if folder := options.output or (install.HERE if is_whole else None):
        _write(results, _sizes(options), folder)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure the relay beside its alternatives.")
    parser.add_argument("--full", action="store_true", help="more and longer rounds, LiteLLM too (half an hour)")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="SUBJECT", help=f"of: {', '.join(NAMES)}")
    names = [measurement.name for measurement in rounds.MEASUREMENTS]
    parser.add_argument("--rows", nargs="+", choices=names, metavar="ROW", help=f"of: {', '.join(names)}")
    written = "where to write results.json and results.svg (this folder, if all of the full form is measured)"
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=written)
    return parser.parse_args()


def _sizes(options: argparse.Namespace) -> Sizes:
    return FULL if options.full else QUICK


async def _run(options: argparse.Namespace) -> Results:
    _end_cleanly_on_sigterm()
    _allow_many_sockets()
    subjects, missing = available(options.only or list(NAMES if options.full else QUICK_SUBJECTS))
    if SERVICE in missing:
        raise BenchmarkError(f"There is no service to measure: {missing[SERVICE]}")
    relay_core, our_core = cores()
    pin(our_core)
    upstream, results = Upstream(), Results(missing=missing)
    bench = Bench(upstream, await upstream.listen(), _sizes(options), relay_core)
    chosen = [m for m in rounds.MEASUREMENTS if not options.rows or m.name in options.rows]
    try:
        await rounds.run(bench, subjects, chosen, results)
    finally:
        upstream.close()
    return results


def _write(results: Results, sizes: Sizes, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(report.as_json(results, sizes))
    (folder / "results.svg").write_text(plot.svg(results))


def _end_cleanly_on_sigterm() -> None:
    """A `kill` must end the subjects too."""
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel, "SIGTERM")


def _allow_many_sockets() -> None:
    """1,000 streams are three sockets each, one of them the relay's own two."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
