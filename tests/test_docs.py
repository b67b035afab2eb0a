"""The pages are true: their commands run, their tables are those of the code."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from routes import routes
from serving.metrics import GAUGES, Metrics
from settings import Settings
from tests import test_fences, test_outages, test_shared_start
from tests.clients.libraries import LIBRARIES
from tests.support.process import ROOT, process
from tests.test_faults import FAULTS, Fault

PAGES = [
    f"{page.relative_to(ROOT)}"
    for pattern in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md", "examples/*/README.md")
    for page in sorted(ROOT.glob(pattern))
]

CONTRACT: dict[str, Any] = json.loads((ROOT / "openapi.json").read_text(encoding="utf-8"))

DECISIONS = [page for page in PAGES if page.startswith("docs/decisions/") and not page.endswith("README.md")]

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

TAKEN = {
    ("README.md", "sh"): 4,
    ("README.md", "powershell"): 1,
    ("README.md", "console"): 1,
    ("README.md", "text"): 1,
    ("CONTRIBUTING.md", "console"): 1,
    ("docs/api.md", "sh"): 1,
    ("docs/clients.md", "sh"): 4,
    ("docs/clients.md", "python"): 1,
    ("docs/clients.md", "js"): 2,  # one runs in tests/browser/origins.spec.ts
    ("docs/clients.md", "powershell"): 1,
    ("docs/clients.md", "tsx"): 4,  # tests/browser/support/fronts.ts, tests/browser/example.spec.ts
    ("docs/clients.md", "console"): 1,
    ("docs/deploy.md", "console"): 3,  # tests/container does the same through its own engine
    ("docs/deploy.md", "text"): 1,  # tests/test_shared_start.py
    ("docs/design.md", "text"): 1,
    ("examples/ai-sdk/README.md", "sh"): 1,
    ("examples/ai-sdk/README.md", "tsx"): 1,  # tests/browser/fronts.spec.ts
    ("examples/assistant-ui/README.md", "tsx"): 2,  # tests/browser/fronts.setup.ts
    ("examples/react/README.md", "sh"): 1,
    ("examples/react/README.md", "tsx"): 1,  # tests/browser/example.spec.ts
    ("examples/tanstack-ai/README.md", "sh"): 1,
    ("examples/tanstack-ai/README.md", "tsx"): 1,  # tests/browser/fronts.spec.ts
}
"""The blocks of code that a test runs or checks, here unless a comment names another place."""


def text(page: str) -> str:
    """All of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """A page's code blocks in this language."""
    return [code for name, code in BLOCK.findall(text(page)) if name == language]


def section(page: str, title: str) -> str:
    """What stands between a heading and the next one."""
    [heading] = re.findall(rf"^#+ {re.escape(title)}$", text(page), re.MULTILINE)
    return re.split(r"^##+ ", text(page).split(f"{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of the tables under a heading, without the heads."""
    bodies = re.findall(r"^\| ---.*\n((?:\|.*\n)*)", section(page, title), re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for body in bodies for line in body.splitlines()]


def shell(page: str, title: str) -> str:
    """All shell lines of a section, as somebody pastes them into one terminal."""
    return "\n".join(code for name, code in BLOCK.findall(section(page, title)) if name == "sh")


def code(page: str) -> str:
    """A page's code, in blocks and in lines of prose."""
    prose = BLOCK.sub("", text(page))
    return "\n".join([*(block for _, block in BLOCK.findall(text(page))), *re.findall(r"`([^`]+)`", prose)])


def at(port: int, code: str) -> str:
    """The code for a relay on another port."""
    return code.replace("localhost:8001", f"localhost:{port}")


def run(command: list[str], code: str, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Output of `command` fed with `code`, which must succeed."""
    done = subprocess.run(
        command, input=code, capture_output=True, text=True, timeout=150, cwd=cwd, env=env, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def demo_output(command: list[str], code: str, cwd: Path) -> str:
    """What the code prints beside a relay on the stand-in."""
    async with process("python", "server.py", "--demo") as relay:
        return run(command, at(int(relay.url.rpartition(":")[2]), code), cwd)


def test_the_first_page_stays_short() -> None:
    assert len(text("README.md").splitlines()) <= 180


def test_every_block_of_code_is_taken_by_a_test() -> None:
    assert Counter((page, language) for page in PAGES for language, _ in BLOCK.findall(text(page))) == TAKEN


# Commands


async def test_make_demo_and_its_three_curl_lines_stream_an_answer(tmp_path: Path) -> None:
    first, *lines = shell("README.md", "Two minutes to a stream").strip().splitlines()
    assert first == "make demo"
    async with process("make", "demo") as relay:
        printed = run(["bash"], at(int(relay.url.rpartition(":")[2]), "\n".join(lines)), tmp_path)
        assert "event: start" in printed
        assert '"status": "complete"' in printed
        assert lines[-1].replace(":8001", "") in relay.output.replace(":" + relay.url.rpartition(":")[2], "")


@pytest.mark.bound(180)
async def test_the_demo_starts_without_make(tmp_path: Path) -> None:
    """The packages are those of the environment that the tests run in: pip finds them there, and asks no network."""
    create, install, start = shell("README.md", "Without make").strip().splitlines()
    for name in ("server.py", "requirements.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"PATH": path, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    run(["bash"], create, tmp_path, env)
    share_packages(tmp_path / ".venv")
    assert "Requirement already satisfied: starlette" in run(["bash"], install, tmp_path, env)
    async with process(*start.split(), cwd=tmp_path) as relay:
        assert (await relay.client.get("/models")).json()["models"][0]["id"].startswith("demo/")


def share_packages(environment: Path) -> None:
    """Let a virtual environment find what is installed in this one."""
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_paths()["purelib"])


def test_the_start_on_windows_is_the_same_in_its_words() -> None:
    """No PowerShell is to be had where the tests run."""
    [lines] = blocks("README.md", "powershell")
    translated = lines.replace("py -m", "python3 -m").replace("\\", "/").replace("Scripts", "bin")
    assert translated == shell("README.md", "Without make")


def test_the_env_file_of_the_readme_can_be_read(tmp_path: Path) -> None:
    assert shell("README.md", "With your OpenRouter key").strip() == "cp .env.example .env"
    (tmp_path / ".env").write_text(text(".env.example"))
    code = "import server; print(server.load_settings() == server.Settings())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stderr


async def test_the_curl_transcript_goes_from_nothing_to_a_resumed_stream(tmp_path: Path) -> None:
    code = "set -e\n" + shell("docs/clients.md", "From curl")
    printed = await demo_output(["bash"], code, tmp_path)
    assert printed.count('"done": true') == 3  # at once; resumed; another one
    assert printed.count("event: start") == 3  # at once; cut; resumed
    assert "You asked: And now?\n" in printed


async def test_the_lines_about_options_show_them_and_what_comes_back(tmp_path: Path) -> None:
    printed = await demo_output(["bash"], "set -e\n" + shell("docs/api.md", "Options"), tmp_path)
    _, options, _ = re.split("```(?:json)?", printed)
    assert json.loads(options) == {"tools": [{"type": "openrouter:web_search"}], "max_tokens": 500}
    [done] = map(json.loads, re.findall(r"^data: (.*)$", printed, re.MULTILINE))
    assert (done["served_model"], done["provider"], len(done["annotations"])) == ("demo/search-20260901", "Demo", 2)
    assert json.loads(printed.splitlines()[-1])["cost"] > 0


async def test_the_python_example_prints_the_answer(tmp_path: Path) -> None:
    [code] = blocks("docs/clients.md", "python")
    assert "You asked: Why is the sky blue?" in await demo_output([sys.executable, "-"], code, tmp_path)


async def test_the_javascript_example_prints_the_answer(tmp_path: Path) -> None:
    [code] = [block for block in blocks("docs/clients.md", "js") if "process.stdout" in block]
    assert "You asked: Why is the sky blue?" in await demo_output(["node", "--input-type=module", "-"], code, tmp_path)


async def test_the_powershell_example_calls_what_there_is() -> None:
    """No PowerShell is to be had where the tests run: its addresses, types and bodies are checked instead."""
    [code] = blocks("docs/clients.md", "powershell")
    paths = [re.sub(r"\$\(\$c\.id\)", "{id}", path) for path in re.findall(r'"\$relay(/[^"]*)"', code)]
    assert paths == ["/conversations", "/conversations/{id}/messages", "/conversations/{id}/stream"]
    assert set(paths) <= {route.path for route in routes}
    assert '@{ content = "Why is the sky blue?" } | ConvertTo-Json' in code
    assert '-ContentType "application/json"' in code


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_and_npm_script_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", code(page), re.MULTILINE)) <= targets
    scripts = json.loads(text("examples/react/package.json"))["scripts"].keys()
    assert set(re.findall(r"\bnpm\s+run\s+([a-z:]+)", code(page))) <= scripts


@pytest.mark.parametrize("page", PAGES)
def test_lines_for_a_console_are_those_of_tools_that_other_tests_run(page: str) -> None:
    for line in "".join(blocks(page, "console")).replace("\\\n", "").splitlines():
        docker = r"docker (compose (--profile \w+ )?up|build|run) "
        assert re.match(rf"make [a-z-]+|npm (ci|run [a-z:]+) --prefix examples/react|{docker}", line)


# Tables


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_table_of_endpoints_is_that_of_the_routes(page: str) -> None:
    told = [match for row in rows(page, "Endpoints") for match in re.findall(r"([A-Z]+) (/\S*?)`", row[0])]
    there = [(method, route.path) for route in routes for method in route.methods or () if method != "HEAD"]
    assert sorted(told) == sorted(there)


@pytest.mark.parametrize("name", ["Conversation", "Message"])
def test_the_fields_are_those_of_the_contract(name: str) -> None:
    told = [field for row in rows("docs/api.md", f"A {name.lower()}") for field in re.findall(r"`(\w+)`", row[0])]
    assert told == [*CONTRACT["components"]["schemas"][name]["properties"]]


FOLDERS = ("api", "serving", "upstream", "stores")
PLACES = (*FOLDERS, "benchmarks", "docs", "examples", "tests")


def test_the_table_of_modules_is_that_of_the_tree() -> None:
    told = {name for row in rows("docs/design.md", "How it works") for name in re.findall(r"`([\w/]+\.py)`", row[0])}
    files = [*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]
    assert told == {str(file.relative_to(ROOT)) for file in files if file.name != "__init__.py"}


def test_the_events_are_those_of_the_contract() -> None:
    told = [re.findall(r'(?<=[{ ])"(\w+)"', row[1].split('"error":')[0]) for row in rows("docs/api.md", "The stream")]
    schemas = CONTRACT["components"]["schemas"]
    names = ["StartEvent", "ContentEvent", "ReasoningEvent", "PingEvent", "DoneEvent"]
    assert told[:5] == [[*schemas[name].get("properties", ())] for name in names]
    assert len(told) == 6


def test_every_status_of_the_contract_is_told() -> None:
    told = {status for row in rows("docs/api.md", "Errors") for status in re.findall(r"\b[45]\d\d\b", row[0])}
    operations = [operation for path in CONTRACT["paths"].values() for operation in path.values()]
    there = {status for operation in operations if "responses" in operation for status in operation["responses"]}
    assert told == {status for status in there if status >= "400"} | {"405"}  # 405 belongs to no operation


def test_the_table_of_settings_is_that_of_the_code() -> None:
    told = {row[0].strip("`"): row[1].strip("`") for row in rows("docs/settings.md", "Settings")}
    defaults = {entry.name.upper(): entry.default for entry in fields(Settings)}
    assert told == {name: written(value) for name, value in defaults.items()}


def written(value: object) -> str:
    """A default as the page writes it."""
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else f"{value}" or "none"


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    told = {name for row in rows("docs/deploy.md", "Metrics") for name in re.findall(r"`(chat_relay_\w+)`", row[0])}
    gauges = dict.fromkeys(GAUGES, 0)
    assert told == set(re.findall(r"^# TYPE (\w+)", Metrics("1", "m").text(gauges), re.MULTILINE))


def test_the_tests_that_the_promises_name_exist() -> None:
    named = [test for row in rows("docs/promises.md", "Promises") for test in row[2].split("<br>")]
    assert [test for test in named if not is_there(test)] == []


def is_there(test: str) -> bool:
    """Whether there is a test, or a command, as docs/promises.md names them."""
    if function := re.fullmatch(r"`(tests/\S+\.py)::(test_\w+)`", test):
        return f"def {function[2]}(" in text(function[1])
    if title := re.fullmatch(r"`(tests/\S+\.ts)`: \*(.+)\*", test):
        return f"test('{title[2]}'" in text(title[1])
    if module := re.fullmatch(r"`python -m ([\w.]+)`", test):
        return (ROOT / module[1].replace(".", "/")).with_suffix(".py").exists()
    return bool(re.fullmatch(r"`make [a-z]+`", test))  # another test looks for the targets


@pytest.mark.parametrize("page", DECISIONS)
def test_a_decision_says_its_four_things_on_one_page(page: str) -> None:
    headings = re.findall(r"^## (.+)$", text(page), re.MULTILINE)
    assert headings == ["Context", "Decision", "What it costs", "When to look again"]
    assert len(text(page).splitlines()) <= 45


def test_the_index_of_the_decisions_has_each_by_its_title() -> None:
    told = re.findall(r"^\| \[(.+?)\]\((.+?)\)", text("docs/decisions/README.md"), re.MULTILINE)
    assert sorted(told) == sorted(
        (text(page).partition("\n")[0].removeprefix("# "), Path(page).name) for page in DECISIONS
    )


@pytest.mark.parametrize("page", PAGES)
def test_the_places_in_the_tree_that_a_page_names_are_there(page: str) -> None:
    named = re.findall(rf"`((?:{'|'.join(PLACES)})/[\w./-]*)`", text(page))
    assert [place for place in named if not (ROOT / place).exists()] == []


def test_the_layout_is_that_of_the_tree() -> None:
    named = [place for row in rows("CONTRIBUTING.md", "Layout") for place in re.findall(r"`([^`]+)`", row[0])]
    assert [place for place in named if not (ROOT / place).exists()] == []
    assert {f"{folder}/" for folder in PLACES} <= {*named}


def test_the_table_of_libraries_is_that_of_their_tests() -> None:
    assert rows("docs/clients.md", "Libraries") == [library.told for library in LIBRARIES]


def test_the_table_of_faults_is_that_of_the_campaign() -> None:
    assert rows("docs/faults.md", "What upstream may do") == [told(fault) for fault in FAULTS]


def told(fault: Fault) -> list[str]:
    """A row of the campaign as the page tells it."""
    outcome = fault.status if fault.code is None else f"{fault.status}, {fault.code}"
    again = {True: "yes", False: "no", None: ""}[fault.retryable]
    return [fault.name.replace("|", "&#124;"), outcome, again, f"{fault.tries}", "yes" if fault.kept else ""]


def test_the_table_of_outages_is_that_of_their_tests() -> None:
    tests = [one for module in (test_outages, test_fences, test_shared_start) for one in vars(module).values()]
    marks = [mark for test in tests for mark in getattr(test, "pytestmark", ()) if mark.name == "row"]
    told = rows("docs/faults.md", "What may happen to relays and their server")
    assert sorted(told) == sorted(list(mark.args) for mark in marks)
