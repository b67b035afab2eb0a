"""Libraries for browsers, in Chromium, and Chromium's own `EventSource`."""

from collections.abc import Sequence

import pytest

from tests.clients.campaign import Case
from tests.clients.libraries import Library, those
from tests.clients.seeing import all_cut, seen


@pytest.fixture(scope="module")
def cases() -> Sequence[Case]:
    return all_cut("browser")


@pytest.mark.parametrize("library", those("browser"), ids=str)
def test_cut_anywhere_and_after_a_silence_nothing_is_lost_or_doubled(cases: Sequence[Case], library: Library) -> None:
    seen(cases, library)
