"""Budgets: the way of a question through the code, the size of the code, and the direction of its imports.

A change that shortens the way or the code lowers the budget, too. Lines have a little room: a docstring counts.
"""

import ast
from dataclasses import asdict
from pathlib import PurePosixPath

import pytest

from benchmarks.street import ROOT, Street, core_files, is_http_client, measure

BUDGET = {
    "memory": Street(
        files=23,
        lines=1_560,
        files_with_client=26,
        lines_with_client=1_850,
        question_moves=60,
        error_moves=50,
        question_calls=218,
        token_calls=31,
        end_calls=263,
        error_calls=227,
        token_frames=41,
        question_loads=0,
        question_commits=0,
        question_commands=0,
    ),
    "sqlite": Street(
        files=24,
        lines=1_661,
        files_with_client=27,
        lines_with_client=1_950,
        question_moves=66,
        error_moves=59,
        question_calls=239,
        token_calls=46,
        end_calls=288,
        error_calls=252,
        token_frames=123,
        question_loads=0,
        question_commits=0,
        question_commands=0,
    ),
    "valkey": Street(
        files=29,
        lines=2_000,
        files_with_client=32,
        lines_with_client=2_300,
        question_moves=124,
        error_moves=104,
        question_calls=410,
        token_calls=64,
        end_calls=432,
        error_calls=393,
        token_frames=135,
        question_loads=1,
        question_commits=1,
        question_commands=3,
    ),
}

CORE = {*core_files().values()}
CORE_LINES = 8_300
CORE_MODULES = 52
FILE_LINES = 350

GROUND = {"settings.py", "logs.py", "result.py"}
UPPER = ("server", "serving", "routes", "api", "replies", "mirrors")
PATHS = (
    (*UPPER, "store", "stores", "ground"),
    (*UPPER, "openrouter", "upstream", "ground"),
    (*UPPER, "openrouter", "upstream", "upstream/http"),
)
"""A layer may import itself and the layers that stand behind it on one of the paths."""


@pytest.mark.parametrize("store", BUDGET)
def test_a_question_its_token_its_end_and_an_error_stay_within_the_budget(
    store: str, request: pytest.FixtureRequest
) -> None:
    street, _ = measure(store, request.config.getoption("--server"))
    assert street.token_calls, "the thread was not watched"
    most = asdict(BUDGET[store])
    assert {name: f"{value} > {most[name]}" for name, value in asdict(street).items() if value > most[name]} == {}


def test_the_core_is_no_larger_than_its_budget() -> None:
    lines = {file: len((ROOT / file).read_text().splitlines()) for file in CORE}
    assert sum(lines.values()) <= CORE_LINES
    assert sum(PurePosixPath(file).name != "__init__.py" for file in lines) <= CORE_MODULES
    assert {file: count for file, count in lines.items() if count > FILE_LINES} == {}


def test_no_module_imports_from_a_layer_above_its_own() -> None:
    arrows = {(file, imported) for file in CORE for imported in imports(file)}
    assert {arrow for arrow in arrows if not is_downward(*arrow)} == set()


@pytest.mark.parametrize(
    "arrow",
    [
        ("stores/sqlite/file.py", "store.py"),
        ("stores/memory.py", "upstream/values.py"),
        ("upstream/texts.py", "api/shapes.py"),
        ("upstream/http/transport.py", "settings.py"),
        ("logs.py", "store.py"),
        ("elsewhere.py", "logs.py"),
    ],
)
def test_an_import_upwards_is_found(arrow: tuple[str, str]) -> None:
    assert not is_downward(*arrow)


def imports(file: str) -> set[str]:
    """The core files that a core file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {f"{name.replace('.', '/')}.py" for name in names} & CORE


def is_downward(file: str, imported: str) -> bool:
    """Whether a path leads from the layer of the file to the layer of the imported file."""
    above, below = layer(file), layer(imported)
    return any({above, below} <= {*path} and path.index(above) <= path.index(below) for path in PATHS)


def layer(file: str) -> str:
    """The folder of a file, or its name where it stands at the root."""
    if is_http_client(file):
        return "upstream/http"
    return "ground" if file in GROUND else file.partition("/")[0].removesuffix(".py")
