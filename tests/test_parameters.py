"""Parameters as papermill injects them, checked in an IPython shell."""

import gc
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from papermill.translators import PythonTranslator
from traitlets.config import Config

from kdepth.notebook.parameters import check_parameters, project_path

DECLARED = """
url_list: str = ""  # a list
root: str = "outputs/x"
limit: int = 0
rate: float = 0.5
keep: bool = True
"""
Check = Callable[..., dict[str, Any]]


@pytest.fixture
def check() -> Iterator[Check]:
    """Run the cells of a notebook up to `check_parameters`, and give the variables that are then there."""
    gc.freeze()  # IPython's reset looks for garbage, and needs not look at all that other tests have left here
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))

    def run(given: dict[str, Any], edited: str = "", not_empty: tuple[str, ...] = ()) -> dict[str, Any]:
        shell.reset()
        cells = [DECLARED, edited, PythonTranslator.codify(given) if given else "", "%pwd\nx = 1"]
        for cell in filter(None, cells):
            shell.run_cell(cell, store_history=True).raise_error()
        check_parameters(not_empty=not_empty)
        return {name: shell.user_ns[name] for name in ("url_list", "root", "limit", "rate", "keep")}

    yield run
    InteractiveShell.clear_instance()
    gc.unfreeze()


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("limit", 1e3, 1000),
        ("limit", 7, 7),
        ("limit", "1e3", 1000),
        ("limit", " 20 ", 20),
        ("limit", 2**60 + 1, 2**60 + 1),
        ("rate", 2, 2.0),
        ("rate", "0.25", 0.25),
        ("root", 123, "123"),
        ("root", 0.5, "0.5"),
        ("keep", False, False),
        ("keep", "false", False),
        ("keep", "Yes", True),
        ("keep", 0, False),
        ("keep", "off", False),
        ("url_list", "my list.txt", "my list.txt"),
    ],
)
def test_a_value_is_taken_as_it_is_meant(name: str, value: object, meant: object, check: Check) -> None:
    found = check({name: value})[name]
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("limit", value)
            for value in (2.5, "many", "", None, [1], {"a": 1}, True, math.nan, math.inf, "nan", "1e999")
        ),
        *(("rate", value) for value in ("fast", "", None, [1.0], True, math.inf)),
        *(("keep", value) for value in ("perhaps", "", None, 2, 0.5, [True])),
        *(("root", value) for value in (None, ["a"], {"a": 1}, True)),
        *(("url_list", value) for value in (None, [], ["https://h/a.mp4"], False)),
    ],
)
def test_a_value_of_another_type_is_named(name: str, value: object, check: Check) -> None:
    kind = {"limit": "int", "rate": "float", "keep": "bool"}.get(name, "str")
    with pytest.raises(TypeError, match=rf"^{name}=.*: must be {kind}$"):
        check({name: value})


def test_what_is_edited_in_the_parameters_cell_is_checked_too(check: Check) -> None:
    assert check({}, edited="limit: int = 1e3")["limit"] == 1000
    # The cell may run again when the notebook has made a path of it.
    assert check({}, edited="from pathlib import Path\nroot: str = Path('x')")["root"] == Path("x")
    with pytest.raises(TypeError, match=r"limit=None: must be int"):
        check({}, edited="limit: int = None")


def test_what_is_given_empty_is_not_the_default(check: Check) -> None:
    assert check({}, not_empty=("url_list",))["url_list"] == ""
    assert check({"url_list": ""})["url_list"] == ""
    for empty in ("", "  "):
        with pytest.raises(ValueError, match="url_list is empty; leave it out for the default ''"):
            check({"url_list": empty}, not_empty=("url_list",))
        with pytest.raises(ValueError, match="root is empty; leave it out for the default 'outputs/x'"):
            check({"root": empty})


def test_a_parameter_that_is_not_there_is_named(check: Check) -> None:
    with pytest.raises(
        TypeError, match=r"no parameter 'url_lst'; did you mean url_list\? It has url_list, root, limit"
    ):
        check({"url_lst": "my.txt"})
    with pytest.raises(TypeError, match="no parameter 'zzz' It has"):
        check({"zzz": 1})


def test_outside_of_a_notebook_there_is_nothing_to_check() -> None:
    check_parameters()


def test_paths_are_relative_to_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert project_path("outputs/x") == tmp_path / "outputs" / "x"
    assert project_path(tmp_path / "y") == tmp_path / "y"
    assert project_path("s3://bucket/x") == "s3://bucket/x"
