"""The README is true: its commands run, its tables are those of the code."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from routes import routes
from serving.settings import Settings
from tests.support.process import ROOT, process
from tests.test_faults import FAULTS, Fault

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The README's code blocks in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """What stands under a heading."""
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(title: str) -> list[list[str]]:
    """The cells of the tables under a heading, without the heads."""
    lines = [line for line in section(title).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if not set(row[0]) <= {"-", " "}]


def at(port: int, code: str) -> str:
    """The code for a relay on another port."""
    return code.replace("localhost:8001", f"localhost:{port}")


def run(command: list[str], code: str, cwd: Path) -> str:
    """Output of `command` fed with `code`, which must succeed."""
    done = subprocess.run(command, input=code, capture_output=True, text=True, timeout=60, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shell(title: str) -> str:
    """All shell lines of a section, as somebody pastes them into one terminal."""
    return "\n".join(re.findall(r"^```sh\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL))


async def demo_output(command: list[str], code: str, cwd: Path) -> str:
    """What the code prints beside a relay on the stand-in."""
    async with process("python", "server.py", "--demo") as relay:
        return run(command, at(int(relay.url.rpartition(":")[2]), code), cwd)


async def test_make_demo_and_its_three_curl_lines_stream_an_answer(tmp_path: Path) -> None:
    first, *lines = shell("Two minutes to a stream").strip().splitlines()
    assert first == "make demo"
    async with process("make", "demo") as relay:
        printed = run(["bash"], at(int(relay.url.rpartition(":")[2]), "\n".join(lines)), tmp_path)
        assert "event: start" in printed
        assert '"status": "complete"' in printed
        assert lines[-1].replace(":8001", "") in relay.output.replace(":" + relay.url.rpartition(":")[2], "")


async def test_the_curl_transcript_goes_from_nothing_to_a_resumed_stream(tmp_path: Path) -> None:
    code = "set -e\n" + shell("From curl")
    printed = await demo_output(["bash"], code, tmp_path)
    assert printed.count('"done": true') == 3  # at once; taken up again; another one
    assert printed.count("event: start") == 3  # at once; cut; taken up again
    assert "You asked: And now?\n" in printed


async def test_the_python_example_prints_the_answer(tmp_path: Path) -> None:
    [code] = blocks("python")
    assert "You asked: Why is the sky blue?" in await demo_output([sys.executable, "-"], code, tmp_path)


async def test_the_javascript_example_prints_the_answer(tmp_path: Path) -> None:
    code = next(block for block in blocks("js") if "process.stdout" in block)
    assert "You asked: Why is the sky blue?" in await demo_output(["node", "--input-type=module", "-"], code, tmp_path)


async def test_the_powershell_example_calls_what_there_is() -> None:
    """No PowerShell is to be had where the tests run: its addresses, types and bodies are checked instead."""
    [code] = blocks("powershell")
    paths = [re.sub(r"\$\(\$c\.id\)", "{id}", path) for path in re.findall(r'"\$relay(/[^"]*)"', code)]
    assert paths == ["/conversations", "/conversations/{id}/messages", "/conversations/{id}/stream"]
    assert set(paths) <= {route.path for route in routes}
    assert '@{ content = "Why is the sky blue?" } | ConvertTo-Json' in code
    assert '-ContentType "application/json"' in code


def test_the_env_file_of_the_readme_can_be_read(tmp_path: Path) -> None:
    assert shell("With your OpenRouter key").strip() == "cp .env.example .env"
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text())
    code = "import server; print(server.load_settings() == server.Settings())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stderr


def test_the_table_of_endpoints_is_that_of_the_routes() -> None:
    told = {match for row in rows("API") for match in re.findall(r"([A-Z]+) (/\S*?)`", row[0])}
    there = {(method, route.path) for route in routes for method in route.methods or () if method != "HEAD"}
    assert told == there


def test_the_table_of_settings_is_that_of_the_code() -> None:
    told = {row[0].strip("`"): row[1].strip("`") for row in rows("Settings") if row[0] != "variable"}
    defaults = {entry.name.upper(): entry.default for entry in fields(Settings)}
    assert told == {name: written(value) for name, value in defaults.items()}


def written(value: object) -> str:
    """A default as the README writes it."""
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else f"{value}" or "none"


@pytest.mark.parametrize("target", ["help", "demo", "run", "test", "check"])
def test_every_make_target_of_the_readme_exists(target: str) -> None:
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_table_of_faults_is_that_of_the_campaign() -> None:
    assert [row for row in rows("What upstream may do") if row[0] != "upstream"] == [told(fault) for fault in FAULTS]


def told(fault: Fault) -> list[str]:
    """A row of the campaign as the README tells it."""
    outcome = fault.status if fault.code is None else f"{fault.status}, {fault.code}"
    again = {True: "yes", False: "no", None: ""}[fault.retryable]
    return [fault.name.replace("|", "&#124;"), outcome, again, f"{fault.tries}", "yes" if fault.kept else ""]
