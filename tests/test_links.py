"""The links of what people read lead somewhere."""

import re
from pathlib import Path

import pytest

from tests.support.process import ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")


@pytest.mark.parametrize("page", ["README.md", "examples/react/README.md", "benchmarks/README.md"])
def test_every_relative_link_leads_to_a_file_and_a_heading(page: str) -> None:
    source = ROOT / page
    for target in links(source):
        path, _, heading = target.partition("#")
        file = (source.parent / path) if path else source
        assert file.exists(), target
        assert not heading or heading in headings(file / "README.md" if file.is_dir() else file), target


def links(page: Path) -> list[str]:
    """Those that don't leave the repository."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [link for match in LINK.findall(text) for link in match if link and "://" not in link]


def headings(page: Path) -> set[str]:
    """The names under which GitHub links to them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
