"""What the README shows, runs."""

import re
from pathlib import Path

from conftest import Run

import kdepth

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()


def test_ci_runs_the_command_that_the_readme_gives() -> None:
    command = "pip install uv && uv run pytest"
    assert f"\n{command}\n" in README
    assert (PROJECT / ".ci" / "run").read_text().rstrip().endswith(command)
    assert "\npip install uv && uv run papermill notebooks/pipeline.ipynb outputs/pipeline.ipynb\n" in README


def test_the_api_that_it_shows_works(sample_run: Run) -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "open_dataset" in block)
    assert len(code.splitlines()) <= 16
    clip_id = next(iter(kdepth.open_dataset(sample_run.root))).clip_id
    # The dataset of the tests has other clips and two frames a second.
    code = code.replace('"outputs/kinetics"', repr(str(sample_run.root)))
    code = re.sub(r'ds\["[^"]+"\]', f"ds[{clip_id!r}]", code)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["clip"].row["status"] == "ok"  # type: ignore[attr-defined]


def test_files_that_it_points_to_are_there() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (PROJECT / target).exists(), target
