"""What the suites of all programs assert."""

import asyncio
from collections.abc import Sequence

from tests.clients.campaign import Case, campaign, case, places
from tests.clients.libraries import Library, those


def all_cut(program: str) -> Sequence[Case]:
    """All libraries of a program at once: cuts, a silence, GET and POST."""
    cases = [case(library, method, cuts) for library in those(program) for method, cuts in places(library)]
    asyncio.run(campaign(program, cases))
    return cases


def seen(cases: Sequence[Case], library: Library) -> None:
    """Each answer of this library is exact, whole, and generated once; cuts and pings did happen."""
    own = [case for case in cases if case.library == library]
    problems = [problem for case in own for problem in case.problems]
    assert own and not problems, "\n".join(problems[:3])
    assert sum(case.cable.made for case in own) >= len(own) // 2
    assert sum(case.cable.pings for case in own) >= len(own) // 2
