"""The pages in docs/ keep to the code: every test they name exists, and no behaviour is left without one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.glob("*.md"))
REFERENCE = re.compile(r"`((?:e2e|unit|vm|wire)/[\w/.-]+\.py)::(\w+)`")
LINES = {"A": 11, "B": 5, "C": 9, "D": 11, "E": 4}
HEADS = ("Attack", "Rule")
BEHAVIOURS = DOCS / "BEHAVIOURS.md"
SECURITY = DOCS / "SECURITY-TESTS.md"


def rows(page: Path) -> Iterator[tuple[str, str]]:
    """The first cell and the rest of each row of the tables of a page."""
    for line in page.read_text().splitlines():
        match = re.match(r"^\| ([^|-][^|]*) \|(.*)\|$", line)
        if match and match[1].strip() not in HEADS:
            yield match[1].strip(), match[2]


def functions(path: Path) -> set[str]:
    """The names of all functions of a test file, those of its classes included."""
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    missing = []
    for file, name in REFERENCE.findall(page.read_text()):
        path = ROOT / "tests" / file
        if not path.is_file() or name not in functions(path):
            missing.append(f"{file}::{name}")
    assert not missing


def test_every_behaviour_has_a_test() -> None:
    tested = {first for first, rest in rows(BEHAVIOURS) if REFERENCE.search(rest)}
    assert tested == {f"{letter}{number + 1}" for letter, count in LINES.items() for number in range(count)}


def test_every_attack_has_a_test() -> None:
    attacks = dict(rows(SECURITY))
    assert len(attacks) > 30
    assert [name for name, rest in attacks.items() if not REFERENCE.search(rest)] == []
