"""What a notebook needs of where it stands, and of what it was given."""

from __future__ import annotations

import ast
import difflib
import sys
from pathlib import Path

_INJECTED = "# Parameters"  # how the cell that papermill puts in begins


def project_path(path: str | Path) -> str | Path:
    """A path as every notebook means it: relative to the project, wherever the kernel was started.

    papermill runs a notebook in the caller's folder, nbval and Jupyter in the notebook's own.

    Args:
        path: Absolute, or relative to the nearest folder at or above the working directory that has a
            ``pyproject.toml``; to the working directory itself if none has. A URI stays as it is.
    """
    if "://" in str(path):
        return str(path)
    here = Path.cwd()
    project = next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").is_file()), here)
    return project / Path(path).expanduser()


def check_parameters() -> None:
    """Refuse what papermill was given and the notebook does not know, where papermill only warns and goes on.

    To be called in the cell after the parameters. Those of the notebook are the annotated ones (``height: int = 360``).

    Raises:
        TypeError: A parameter that the notebook does not have, or text for one that is a number or a truth value.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    cells: list[str] = shell.user_ns.get("In", []) if shell else []
    known: dict[str, str] = {}
    for cell in cells:
        is_injected = cell.startswith(_INJECTED)
        for statement in _statements(cell):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                known[statement.target.id] = ast.unparse(statement.annotation)
            elif is_injected and isinstance(statement, ast.Assign):
                _check(ast.unparse(statement.targets[0]), statement.value, known)


def _statements(cell: str) -> list[ast.stmt]:
    try:
        return ast.parse(cell).body
    except SyntaxError:  # IPython's own: magics, `await`
        return []


def _check(name: str, value: ast.expr, known: dict[str, str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise TypeError(f"the notebook has no parameter {name!r}{meant} It has {', '.join(known)}")
    if known[name] in ("int", "float", "bool") and isinstance(value, ast.Constant) and isinstance(value.value, str):
        raise TypeError(f"{name}={value.value!r}: must be {known[name]}")
