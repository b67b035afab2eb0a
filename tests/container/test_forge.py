"""What the forge reads fits the schemas of what it reads."""

import sys

import pytest

from tests.container.namespaces import output
from tests.support.process import ROOT


@pytest.mark.parametrize(
    ("schema", "file"), [("github-workflows", ".github/workflows/ci.yml"), ("dependabot", ".github/dependabot.yml")]
)
def test_a_file_of_the_forge_fits_its_schema(schema: str, file: str) -> None:
    output(sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", file, cwd=ROOT)
