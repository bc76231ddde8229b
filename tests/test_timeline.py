from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from conftest import Run

import kdepth
from kdepth.notebook.timeline import COLUMNS, STAGES, last_run, stage_load
from kdepth.schema import OK, new_row, rows_to_table

START = datetime(2030, 1, 1, tzinfo=UTC)


def rows(*clips: dict[str, tuple[float, float]], run_id: str = "run", committed: float = 100) -> pa.Table:
    """Rows of clips, each stage given as (start, end) in seconds."""
    table = []
    for k, clip in enumerate(clips):
        row = new_row(clip_id=f"{run_id}-{k}", status=OK, run_id=run_id)
        row["committed_at"] = START + timedelta(seconds=committed)
        for stage, (begin, end) in clip.items():
            row[f"{stage}_started_at"] = START + timedelta(seconds=begin)
            row[f"{stage}_seconds"] = float(end - begin)
        table.append(row)
    return rows_to_table(table).select(COLUMNS)


def test_clips_in_work_and_waiting_are_counted_between_events() -> None:
    load = stage_load(
        rows(
            {"download": (0, 1), "transcode": (1, 3), "depth": (4, 8)},
            {"download": (0, 2), "transcode": (3, 5), "depth": (8, 12)},
            {"download": (0, 1)},  # failed: it waits for nothing
        )
    )
    assert load.edges.tolist() == pytest.approx([0, 1, 2, 3, 4, 5, 8, 12])
    assert load.in_work["download"].tolist() == [3, 1, 0, 0, 0, 0, 0]
    assert load.in_work["transcode"].tolist() == [0, 1, 1, 1, 1, 0, 0]
    assert load.in_work["depth"].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert load.waiting["transcode"].tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert load.waiting["depth"].tolist() == [0, 0, 0, 1, 0, 1, 0]
    assert load.seconds == 12
    assert [load.work_seconds(stage) for stage in STAGES] == pytest.approx([4, 4, 8])


def test_the_bottleneck_is_what_the_run_waited_for() -> None:
    # A GPU that clips queue for, while others are still transcoded.
    clips = [{"download": (0, 1), "transcode": (k, k + 1), "depth": (10 * k - 8, 10 * k + 2)} for k in range(1, 5)]
    load = stage_load(rows(*clips))
    assert max(load.bottleneck_seconds().items(), key=lambda item: item[1])[0] == "depth"
    assert load.summary().startswith("The bottleneck was depth: the run waited for it 94% of 42 s")
    # A slow line: workers sit idle until the next clip is there.
    clips = [{"download": (10 * k, 10 * k + 10), "transcode": (10 * k + 10, 10 * k + 11)} for k in range(5)]
    assert "bottleneck was download" in stage_load(rows(*clips)).summary()
    # One worker does both, and most of its time is the transcode.
    clips = [
        {"download": (0, 1), "transcode": (9 * k + 1, 9 * k + 8), "depth": (9 * k + 8, 9 * k + 10)} for k in range(5)
    ]
    found = stage_load(rows(*clips)).bottleneck_seconds()
    assert found == pytest.approx({"download": 1, "transcode": 35, "depth": 10})


def test_only_the_last_run_that_worked_is_looked_at() -> None:
    first = rows({"download": (0, 1)}, {"download": (0, 2)}, run_id="first", committed=10)
    second = rows({"depth": (500, 501)}, run_id="second", committed=502)  # its other files were there
    third = rows({}, run_id="third", committed=900)  # a clip that no source had
    assert last_run(pa.concat_tables([second, first, third])).equals(second)
    assert stage_load(second).seconds == pytest.approx(1)
    assert last_run(third).num_rows == last_run(third.slice(0, 0)).num_rows == 0
    with pytest.raises(ValueError, match="no row says"):
        stage_load(third)


def test_a_real_run_adds_up(sample_run: Run) -> None:
    table = last_run(kdepth.open_dataset(sample_run.root).table(columns=COLUMNS))
    assert table.num_rows == sample_run.report.num_ok
    load = stage_load(table)
    for stage in STAGES:
        spent = sum(table[f"{stage}_seconds"].to_pylist())
        assert load.work_seconds(stage) == pytest.approx(spent, abs=1e-3)
        assert load.in_work[stage].min() >= 0
    assert 0 < load.seconds <= sample_run.report.seconds
    rest = sum(load.in_work.values()) == 0
    at_work = load.seconds - float(np.diff(load.edges)[rest].sum())
    # A download while others wait for workers that are not up yet holds nobody up.
    assert at_work - load.work_seconds("download") <= sum(load.bottleneck_seconds().values()) <= at_work + 1e-6
    # Whatever waited was taken up: nothing waits at the end.
    assert {queue[-1] for queue in load.waiting.values()} == {0}
