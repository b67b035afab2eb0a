"""Libraries for browsers, in Chromium, and Chromium's own `EventSource`."""

import functools
from collections.abc import Sequence

import pytest

from tests.clients.cable import BLOCK_END, Cable
from tests.clients.campaign import WORDS, Case, campaign, case, in_turns, spelled
from tests.clients.libraries import Library, those
from tests.clients.seeing import all_cut, seen

BLOCK = len('data: {"content": "two "}\nid: 00000000-0000-0000-0000-000000000000:8\n\n')


@pytest.fixture(scope="module")
def cases() -> Sequence[Case]:
    return all_cut("browser")


@pytest.mark.parametrize("library", those("browser"), ids=str)
def test_cut_anywhere_and_after_a_silence_nothing_is_lost_or_doubled(cases: Sequence[Case], library: Library) -> None:
    seen(cases, library)


async def test_a_tab_that_is_hidden_and_comes_back_reads_on() -> None:
    tried = [case(library, method) for library in those("browser") if library.tabs for method in library.methods]
    await campaign("switch", tried, functools.partial(in_turns, turns=3))
    assert [one.problems for one in tried] == [[]] * len(tried)
    assert [one.cable.streams for one in tried] == [4] * len(tried)


async def test_a_page_that_is_loaded_again_joins_its_answer() -> None:
    tried = [case(library, method) for library in those("browser") for method in library.methods]
    await campaign("reload", tried, functools.partial(in_turns, turns=1))
    assert [one.problems for one in tried] == [[]] * len(tried)


@pytest.mark.parametrize("library", those("browser"), ids=str)
async def test_at_one_byte_of_a_block_alone_a_library_loses_it_that_takes_an_id_early(library: Library) -> None:
    tried = [
        Case(library, "GET", Cable([at], mark=b'data: {"content": "two'), "".join(WORDS), "")
        for at in range(1, BLOCK + 1, 1 if library.early_id else 9)
    ]
    await campaign("browser", tried, spelled)
    lost = [at for at, one in enumerate(tried, start=1) if one.problems]
    assert lost == [BLOCK - len(BLOCK_END) // 2] * library.early_id
    assert all(one.reading.text == WORDS[0] + WORDS[2] for one in tried if one.problems)
    assert all(one.cable.made for one in tried)
