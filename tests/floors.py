"""The floors of offline/ and what does not keep to them: ``python -m tests.floors`` prints both."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("vllm_moe_prune", "offline", "serve", "loadtest")

# From the top down. A room imports rooms on lower floors and nothing else of offline/.
FLOORS = (
    ("cli",),  # words in, words out
    ("demo",),  # the embedded default: the whole job
    ("compress", "sweep"),  # from a base and a task to a pruned checkpoint, or to many maps
    ("plan", "lottery", "recover", "analysis", "check"),  # other jobs, start to end
    ("methods",),  # choosing: searches and one-shot methods
    ("criteria",),  # choosing: one score per expert
    ("finetune",),  # training
    ("calibration", "fitness"),  # measuring: experts, candidates
    ("engines",),  # what runs the model
    ("build", "gates", "lint", "report"),  # making and showing
    ("tasks",),  # what is asked
    ("texts",),  # text that is read, row by row
    ("data",),  # packages that are read
    ("maps", "results", "runs"),  # the shapes of things
)


def name_of(file: Path) -> str:
    """Return a file's path inside the repository."""
    return file.relative_to(ROOT).as_posix()


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Return module -> file, of everything that is installed."""
    files = (file for package in PACKAGES for file in (root / package).rglob("*.py"))
    return {".".join(f.relative_to(root).with_suffix("").parts): f for f in sorted(files)}


def imports(file: Path, *, at_import_time: bool = False) -> tuple[str, ...]:
    """Return the modules that a file imports, whole names; a from-import as the module and as each
    name in it, which may be a module as well."""
    return _imports(file.read_text(), at_import_time)


@cache  # by the text: copies of a tree are read once, and a file once for all tests
def _imports(text: str, at_import_time: bool) -> tuple[str, ...]:
    tree = ast.parse(text)
    found: list[str] = []
    for node in _top_level(tree) if at_import_time else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            assert node.module is not None
            found += (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    return tuple(found)


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import: not inside functions, not for type checkers only."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from (n for n in ast.walk(node) if isinstance(n, ast.stmt))


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Return module -> the modules of ours that it imports, wherever in the file."""
    files = sources(root)
    return {name: set(imports(file)) & files.keys() - {name} for name, file in files.items()}


def room_of(module: str) -> str | None:
    """Return the room of offline/ that a module stands in; None outside of it."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "offline" and rest else None


def upward(found: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Return the imports, as pairs of modules, that do not run down."""
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = []
    for module, imported in sorted(found.items()):
        here = room_of(module)
        for other in sorted(imported):
            there = room_of(other)
            if here is None or there is None or here == there or "__init__" in (here, there):
                continue
            if floor[there] <= floor[here]:
                wrong.append((module, other))
    return wrong


def circles(found: Mapping[str, set[str]]) -> list[tuple[str, ...]]:
    """Return the groups of modules that import each other (Tarjan's components of two or more)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[tuple[str, ...]] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in sorted(found[module]):
            if other not in number:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], number[other])
        if low[module] == number[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                groups.append(tuple(sorted(stack[at:])))
            del stack[at:]

    for module in sorted(found):
        if module not in number:
            visit(module)
    return groups


def main() -> None:
    """Print the floors with the files on each, the circles and the imports that run up."""
    found = graph()
    for number, rooms in enumerate(FLOORS):
        counts = [f"{r} ({sum(room_of(m) == r for m in found)})" for r in rooms]
        print(f"{len(FLOORS) - number:2}  {'  '.join(counts)}")
    print(f"rooms: {sum(map(len, FLOORS))}, floors: {len(FLOORS)}")
    for title, entries in (("circles", circles(found)), ("upward imports", upward(found))):
        print(f"{title}: {len(entries)}")
        for entry in entries:
            print("   ", " <-> " if title == "circles" else " -> ", *entry)


if __name__ == "__main__":
    main()
