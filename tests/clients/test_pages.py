"""What happens to pages: tabs that are hidden, reloads, and cuts at each byte of a block."""

import functools

from tests.clients.cable import BLOCK_END, Cable
from tests.clients.campaign import WORDS, Case, campaign, case, in_turns, spelled
from tests.clients.libraries import Library, those

BLOCK = len('data: {"content": "two "}\nid: 00000000-0000-0000-0000-000000000000:8\n\n')
BETWEEN = BLOCK - len(BLOCK_END) // 2
"""Bytes of a block until there is nothing but the last line end."""


async def test_a_tab_that_is_hidden_and_comes_back_reads_on() -> None:
    tried = [case(library, method) for library in those("browser") if library.tabs for method in library.methods]
    await campaign("switch", tried, functools.partial(in_turns, turns=3))
    assert [one.problems for one in tried] == [[]] * len(tried)
    assert [one.cable.streams for one in tried] == [4] * len(tried)


async def test_a_page_that_is_loaded_again_joins_its_answer() -> None:
    tried = [case(library, method) for library in those("browser") for method in library.methods]
    await campaign("reload", tried, functools.partial(in_turns, turns=1))
    assert [one.problems for one in tried] == [[]] * len(tried)


async def test_cut_anywhere_in_a_block_a_library_that_takes_ids_early_loses_it_at_one_byte_alone() -> None:
    tried = [(at, cut_in_a_block(library, at)) for library in those("browser") for at in places(library)]
    await campaign("browser", [one for _, one in tried], spelled)
    lost = [(one.library.name, at) for at, one in tried if one.problems]
    assert lost == [(library.name, BETWEEN) for library in those("browser") if library.early_id]
    assert all(one.reading.text == WORDS[0] + WORDS[2] for _, one in tried if one.problems)


def places(library: Library) -> list[int]:
    """Each byte for the one that most people use; the last ones and some others for the others."""
    every = range(1, BLOCK + 1)
    return [*every] if library.name == "@microsoft/fetch-event-source" else [*every[:-5:15], *every[-5:]]


def cut_in_a_block(library: Library, at: int) -> Case:
    """One whose stream is cut after so many bytes of its second word's block."""
    return Case(library, "GET", Cable([at], mark=b'data: {"content": "two'), "".join(WORDS), "")
