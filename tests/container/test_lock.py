"""The lock is what `make lock` makes of requirements.txt."""

import re

from tests.support.process import ROOT

WANTED = (ROOT / "requirements.txt").read_text() + (ROOT / "requirements-valkey.txt").read_text()
LOCK = (ROOT / "requirements.lock").read_text() + (ROOT / "requirements-valkey.lock").read_text()
PIN = re.compile(r"^([a-z0-9-]+)(?:\[[a-z]+\])?==(\S+)", re.MULTILINE)


def test_everything_is_locked_in_the_release_that_requirements_txt_names() -> None:
    assert dict(PIN.findall(WANTED)).items() <= dict(PIN.findall(LOCK)).items()


def test_every_package_has_hashes() -> None:
    without_comments = re.sub(r"^ *#.*\n", "", LOCK, flags=re.MULTILINE)
    packages = re.split(r"\n(?=\S)", without_comments.strip())
    assert len(packages) > 10
    for package in packages:
        assert re.fullmatch(r"[a-z0-9-]+==\S+( ; [^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", package), package


def test_it_names_no_place_to_get_them_from() -> None:
    assert not re.search(r"://|file:|^-|(^|\s)/", LOCK, re.MULTILINE)
