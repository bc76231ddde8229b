"""Where a notebook stands, and which parameters it was given."""

from __future__ import annotations

import ast
import difflib
import math
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from kdepth.errors import printable

_INJECTED = "# Parameters"  # how the cell that papermill puts in begins
_BOOLS = {word: word in ("true", "yes", "on", "1") for word in ("true", "yes", "on", "1", "false", "no", "off", "0")}


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


def check_parameters(*, not_empty: Collection[str] = ()) -> None:
    """Check the notebook's parameters, and give them the types that it declares.

    Call it in the cell after the parameters, which are the annotated ones (``height: int = 360``). papermill only warns
    of a parameter that the notebook does not have, and makes a number of what looks like one: a whole ``1e3`` becomes
    an ``int`` again, a number a ``str`` where text is declared, and ``yes`` a ``bool``.

    Args:
        not_empty: Parameters that may be empty only if papermill was not given them. An empty one is most likely an
            unset variable of a shell. This holds always for those whose default is some text.

    Raises:
        TypeError: A parameter that the notebook does not have, or whose value is of another type.
        ValueError: A parameter that was given, and is empty.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None:
        return
    kinds: dict[str, str] = {}
    defaults: dict[str, Any] = {}
    given: list[str] = []
    for cell in shell.user_ns.get("In", []):
        for statement in _statements(cell):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                kinds[statement.target.id] = ast.unparse(statement.annotation)
                if isinstance(statement.value, ast.Constant):
                    defaults.setdefault(statement.target.id, statement.value.value)
            elif isinstance(statement, ast.Assign) and cell.startswith(_INJECTED):
                given.append(ast.unparse(statement.targets[0]))
    for name in given:
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, 1, cutoff=0.4)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(f"the notebook has no parameter {name!r}{meant} It has {', '.join(kinds)}")
        value, default = shell.user_ns[name], defaults.get(name)
        needs_text = name in not_empty or (isinstance(default, str) and default)
        if needs_text and isinstance(value, str) and not value.strip():
            raise ValueError(f"{name} is empty; leave it out for the default {default!r}")
    for name in kinds.keys() & shell.user_ns.keys():
        shell.user_ns[name] = _as_declared(name, shell.user_ns[name], kinds[name])


def _statements(cell: str) -> list[ast.stmt]:
    try:
        return ast.parse(cell).body
    except SyntaxError:  # IPython's own: magics, `await`
        return []


def _as_declared(name: str, value: Any, kind: str) -> Any:
    """A parameter's value in its declared type, if it can only mean that."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "str" and (isinstance(value, str | os.PathLike) or is_number):
        return str(value) if is_number else value
    if kind == "bool" and (word := str(value).strip().lower()) in _BOOLS:
        return _BOOLS[word]
    if kind in ("int", "float") and (is_number or isinstance(value, str)):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number) and kind == "float":
            return number
        if math.isfinite(number) and number == int(number):
            return value if isinstance(value, int) else int(number)
    if kind in ("str", "bool", "int", "float"):
        raise TypeError(f"{name}={printable(repr(value), 200)}: must be {kind}")
    return value
