"""`python -m benchmarks`: measure and print the tables; the full form writes the results beside this file, too."""

import argparse
import asyncio
import resource
import shutil
import signal
import sys
from pathlib import Path

import uvloop

from benchmarks import install, plot, report, rounds
from benchmarks.bench import FULL, QUICK, Bench, Sizes, cores
from benchmarks.errors import BenchmarkError
from benchmarks.processes import pin
from benchmarks.results import Results
from benchmarks.subjects import NAMES, SERVICE, available
from benchmarks.upstream import Upstream


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
    whole, headlines = report.whole(results, _sizes(options)), report.headlines(results, _sizes(options))
    print(f"{whole}\n\n{headlines}")
    if options.output:
        _write(results, _sizes(options), options.output)
    elif options.full and not (options.only or options.rows or options.python):
        _write(results, _sizes(options), install.HERE)
        _put(whole, install.HERE / "README.md")
        _put(headlines, install.ROOT / "README.md")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure the relay beside its alternatives.")
    parser.add_argument("--full", action="store_true", help="more and longer rounds (half an hour)")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="SUBJECT", help=f"of: {', '.join(NAMES)}")
    names = [measurement.name for measurement in rounds.MEASUREMENTS]
    parser.add_argument("--rows", nargs="+", choices=names, metavar="ROW", help=f"of: {', '.join(names)}")
    on = "the Python that naive and service run on, in place of this one"
    parser.add_argument("--python", type=_interpreter, metavar="PATH", help=on)
    written = "where to write results.json and results.svg (if the whole full form is measured: here, and the READMEs)"
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=written)
    return parser.parse_args()


def _interpreter(name: str) -> Path:
    return Path(shutil.which(name) or name).absolute()


def _sizes(options: argparse.Namespace) -> Sizes:
    return FULL if options.full else QUICK


async def _run(options: argparse.Namespace) -> Results:
    _end_cleanly_on_sigterm()
    _allow_many_sockets()
    python = options.python or Path(sys.executable)
    subjects, missing = available(options.only or NAMES, python)
    if SERVICE in missing:
        raise BenchmarkError(f"There is no service to measure: {missing[SERVICE]}")
    relay_core, our_core = cores()
    pin(our_core)
    upstream, results = Upstream(), Results(install.version(python), missing)
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


def _put(text: str, page: Path) -> None:
    if not report.put(text, page):
        print(f"{page} has no markers named {report.NAME}: it stays as it is", file=sys.stderr)


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
