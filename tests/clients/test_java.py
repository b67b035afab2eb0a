"""The JDK's own client, which offers HTTP/2 with each request."""

from collections.abc import Sequence

import pytest

from tests.clients.campaign import LATE, Case, at_once, campaign, case
from tests.clients.libraries import Library, those
from tests.clients.seeing import all_cut, seen


@pytest.fixture(scope="module")
def cases() -> Sequence[Case]:
    return all_cut("java")


@pytest.mark.parametrize("library", those("java"), ids=str)
def test_cut_anywhere_and_after_a_silence_nothing_is_lost_or_doubled(cases: Sequence[Case], library: Library) -> None:
    seen(cases, library)


async def test_a_long_text_at_once_is_no_line_too_long() -> None:
    tried = [case(library, method, text=LATE) for library in those("java") for method in library.methods]
    await campaign("java", tried, at_once)
    assert [one.problems for one in tried] == [[]] * len(tried)
