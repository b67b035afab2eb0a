"""The links of what people read lead somewhere."""

import re
from pathlib import Path

import pytest

from tests.support.process import ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")

PAGES = sorted(
    f"{page.relative_to(ROOT)}"
    for pattern in ("*.md", "docs/**/*.md", "examples/*/README.md", "benchmarks/README.md")
    for page in ROOT.glob(pattern)
)


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: str) -> None:
    source = ROOT / page
    for target in links(source):
        path, _, heading = target.partition("#")
        file = (source.parent / path) if path else source
        assert file.exists(), target
        assert not heading or heading in headings(file / "README.md" if file.is_dir() else file), target


def test_the_first_page_leads_to_every_other_one_or_to_its_index() -> None:
    linked = {link.partition("#")[0] for link in links(ROOT / "README.md")}
    linked |= {f"docs/decisions/{link}" for link in links(ROOT / "docs/decisions/README.md")}
    assert {*PAGES} - {"README.md"} <= linked


def links(page: Path) -> list[str]:
    """Those that don't leave the repository."""
    return [link for match in LINK.findall(prose(page)) for link in match if link and "://" not in link]


def headings(page: Path) -> set[str]:
    """The names under which GitHub links to them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
