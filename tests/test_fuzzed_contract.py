"""The running service against openapi.json under Schemathesis: good and bad data, and sequences of calls."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.support.process import ROOT, process

PROGRAM = Path(sys.executable).with_name("schemathesis")


@pytest.mark.bound(600)
async def test_no_request_that_a_fuzzer_makes_gets_an_answer_that_the_contract_does_not_know(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """Status, content type, headers, schema, no 5xx, bad data refused. `make fuzz` takes other data each time."""
    examples = pytestconfig.getoption("--fuzz")
    data = ["--max-examples", str(examples)] if examples else ["--max-examples", "8", "--generation-deterministic"]
    async with process("python", "server.py", "--demo", env={"LOG_LEVEL": "WARNING"}) as relay:
        options = ["--url", relay.url, *data, "--request-timeout", "10", "--no-color"]
        fuzzer = await asyncio.create_subprocess_exec(
            str(PROGRAM),
            f"--config-file={ROOT / 'tests' / 'schemathesis.toml'}",
            "run",
            str(ROOT / "openapi.json"),
            *options,
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await fuzzer.communicate()
        told = "\n".join(line[:300] for line in output.decode().splitlines()[-200:])
        assert fuzzer.returncode == 0, told
        assert "Operations:       17 selected / 17 total" in told
        assert "Traceback" not in relay.output
        assert "crashed" not in relay.output
