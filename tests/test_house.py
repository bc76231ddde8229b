"""The house: rooms lie one above the other, modules and functions are short."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = "errors|schema|storage html|lists|sources|video|downloads|models|dataset|pipeline|notebook|plots samples"
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS.split("|")) for room in rooms.split()}
PATHS = [path for path in sorted(ROOT.glob("kdepth/**/*.py")) if path.name != "__init__.py"]
TREES = {".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text()) for path in PATHS}


def test_imports_lead_down_and_in_no_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for module, tree in TREES.items():
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not any(node.level for node in froms), module  # an import is spelled in full
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {name for node in froms for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names))}
        arrows[module] = names & TREES.keys()
    assert sum(map(len, arrows.values())) > 100  # or nothing was looked at
    rooms = [(a.split(".")[1], b.split(".")[1]) for a, found in arrows.items() for b in found]
    assert [(a, b) for a, b in rooms if a != b and FLOOR_OF[a] <= FLOOR_OF[b]] == []
    TopologicalSorter(arrows).prepare()  # raises CycleError


def test_nothing_is_long() -> None:
    assert [path.name for path in PATHS if len(path.read_text().splitlines()) > 400] == []
    assert [room for room in ROOT.glob("kdepth/*/") if sum(path.parent == room for path in PATHS) > 9] == []
    functions = [
        n for tree in TREES.values() for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for function in functions:
        code = function.body[1:] if ast.get_docstring(function) else function.body
        lines = (function.body[0].lineno - function.lineno) + (code[-1].end_lineno - code[0].lineno + 1 if code else 0)
        assert lines <= 60, function.name
