"""What the suites of all programs assert."""

from collections.abc import Sequence

from tests.clients.campaign import Case, campaign, places
from tests.clients.libraries import Library, those


async def all_cut(program: str) -> Sequence[Case]:
    """All libraries of a program at once: cuts, a silence, GET and POST."""
    cuts = [(library, method, at) for library in those(program) for method, at in places(library)]
    return await campaign(program, cuts)


def seen(cases: Sequence[Case], library: Library) -> None:
    """Each answer of this library is exact, whole, and generated once; cuts and pings did happen."""
    own = [case for case in cases if case.library == library]
    problems = [problem for case in own for problem in case.problems]
    assert own and not problems, "\n".join(problems[:3])
    assert sum(case.cable.made for case in own) >= len(own)
    assert sum(case.reading.pings for case in own) >= len(own) // 2
