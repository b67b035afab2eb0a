"""The HTTP client is a library: it imports nothing of the relay, and its README's example runs."""

import re
import subprocess
import sys
import textwrap
from typing import Any

import httpx
import pytest

from tests.http.peers import hello, served_by
from tests.support.process import ROOT
from tests.support.waiting import bounded
from upstream.http.transport import Transport

FOLDER = ROOT / "upstream" / "http"


def test_it_imports_nothing_of_the_relay() -> None:
    names = "name for name, module in sys.modules.items() if hasattr(module, '__file__')"
    code = f"import sys, upstream.http.transport; print(*({names}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    roots = {file.stem for file in ROOT.glob("*.py")} | {file.parent.name for file in ROOT.glob("*/__init__.py")}
    ours = {name for name in done.stdout.split() if name.partition(".")[0] in roots}
    assert ours == {"upstream", "upstream.http", *(f"upstream.http.{file.stem}" for file in FOLDER.glob("[a-z]*.py"))}


async def test_the_example_of_its_readme_reads_a_stream(capsys: pytest.CaptureFixture[str]) -> None:
    [example] = re.findall(r"^```python\n(.*?)^```$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, Any] = {"httpx": httpx, "Transport": Transport}
    exec(f"async def example(url):\n{textwrap.indent(example, '    ')}", names)
    async with served_by(hello) as peer:
        await bounded(names["example"](peer.url))
    assert capsys.readouterr().out == "b'hello'\n"
