"""The house: rooms lie one above the other, modules are short."""

import ast
from graphlib import TopologicalSorter
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = "errors|schema|storage html|lists|sources|video|downloads|models|dataset|pipeline|notebook|plots samples"
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS.split("|")) for room in rooms.split()}
TREES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted((ROOT / "kdepth").rglob("*.py"))
    if path.stem not in ("__init__", "__main__")
}


def imported(tree: ast.Module) -> set[str]:
    """The modules of kdepth that a module imports, anywhere in it."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & TREES.keys()


def test_arrows_go_down_and_nowhere_in_a_circle() -> None:
    arrows = {module: imported(tree) for module, tree in TREES.items()}
    room = {module: module.split(".")[1] for module in arrows}
    up = [(a, b) for a, found in arrows.items() for b in found if room[a] != room[b]]
    assert [pair for pair in up if FLOOR_OF[room[pair[0]]] <= FLOOR_OF[room[pair[1]]]] == []
    assert sum(map(len, arrows.values())) > 100  # or nothing was looked at
    TopologicalSorter(arrows).prepare()  # raises CycleError


def test_nothing_is_long() -> None:
    paths = [path for path in sorted((ROOT / "kdepth").rglob("*.py")) if path.name != "__init__.py"]
    assert [path.name for path in paths if len(path.read_text().splitlines()) > 400] == []
    rooms = {str(folder): len(list(some)) for folder, some in groupby(paths, lambda path: path.parent)}
    assert [room for room, count in rooms.items() if count > 9 and Path(room) != ROOT / "kdepth"] == []
    functions = [node for tree in TREES.values() for node in ast.walk(tree) if hasattr(node, "decorator_list")]
    assert [node.name for node in functions if isinstance(node, FUNCTIONS) and num_lines(node) > 60] == []


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from `def` on, without its docstring."""
    assert function.end_lineno is not None
    first = function.body[0]
    docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) else 0
    return function.end_lineno - function.lineno + 1 - docstring
