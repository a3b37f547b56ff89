"""In which order the modules of a command run: what `shim.install` writes down, so that a cold start need not find out.

Python's import system spends as long on a module (looking for it, locks, a spec) as the module itself takes. Our
modules import each other by absolute names at their top and nowhere else, which a test holds, so that the order
follows from their sources: a package before what is in it, a module after what it imports.
"""

from __future__ import annotations

import ast

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


def run_order(roots: Iterable[str], sources: Mapping[str, ast.Module]) -> list[str]:
    """Every module of `sources` that importing `roots` runs, in the order in which they end."""
    done: list[str] = []
    begun: set[str] = set()

    def visit(name: str) -> None:
        parent = name.rpartition(".")[0]
        if parent:
            visit(parent)
        if name in begun or name not in sources:
            return
        begun.add(name)
        for wanted in imports(sources[name]):
            visit(wanted)
        done.append(name)

    for root in roots:
        visit(root)
    return done


def imports(source: ast.Module) -> Iterator[str]:
    """What a module imports when it runs, in order; a name that is imported from a package may be a module of it."""
    for statement in source.body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module is not None:
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
