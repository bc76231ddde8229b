"""Find out from a run's rows when each stage worked, how many clips waited, and where the bottleneck was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

STAGES = ("download", "transcode", "depth")
# The columns that `last_run` and `stage_load` need.
COLUMNS = (
    *("clip_id", "run_id", "committed_at"),
    *(f"{stage}_{what}" for stage in STAGES for what in ("started_at", "seconds")),
)


@dataclass(frozen=True, slots=True)
class StageLoad:
    """How many clips were in each stage, and how many waited for it, over the time of a run.

    Attributes:
        edges: ``(N + 1,)`` float64, seconds since the first stage began, ascending: the times at which a stage of a
            clip began or ended.
        in_work: Stage -> ``(N,)`` int: clips in the stage between two edges.
        waiting: Stage -> ``(N,)`` int: clips that wait for it: for ``transcode`` those downloaded but not yet
            transcoded, for ``depth`` those transcoded but without depth yet. Failed clips do not wait.
    """

    edges: NDArray[np.float64]
    in_work: dict[str, NDArray[np.int64]]
    waiting: dict[str, NDArray[np.int64]]

    @property
    def seconds(self) -> float:
        """Time from the start of the first stage to the end of the last one."""
        return float(self.edges[-1])

    def work_seconds(self, stage: str) -> float:
        """Sum of the times that the stage spent on each clip."""
        return float(np.sum(self.in_work[stage] * np.diff(self.edges)))

    def bottleneck_seconds(self) -> dict[str, float]:
        """Stage -> time for which the run waited for it. The rest of `seconds` is mostly the start of workers.

        While clips wait for depth, the run waits for depth. While clips wait for their transcode, the run waits for the
        workers: the time is shared between transcode and depth by the clips that each has in work (without a GPU one
        worker does both). While no clip waits, the run waits for the download if one is under way, else for the stages
        in work.
        """
        widths = np.diff(self.edges)
        transcode, depth = self.in_work["transcode"], self.in_work["depth"]
        for_depth = (self.waiting["depth"] > 0) & (depth > 0)
        for_download = ~for_depth & (self.waiting["transcode"] == 0) & (self.in_work["download"] > 0)
        shared = np.where(for_depth | for_download, 0.0, widths) / np.maximum(transcode + depth, 1)
        return {
            "download": float(widths[for_download].sum()),
            "transcode": float((shared * transcode).sum()),
            "depth": float((shared * depth).sum() + widths[for_depth].sum()),
        }

    def summary(self) -> str:
        """Name the bottleneck and what each stage did, in a few lines for a lab book."""
        blamed = self.bottleneck_seconds()
        worst = max(blamed, key=lambda stage: blamed[stage])
        widths = np.diff(self.edges) / self.seconds
        at_rest = float(widths[sum(self.in_work.values()) == 0].sum())
        share = f"{blamed[worst] / self.seconds:.0%} of {self.seconds:.0f} s"
        lines = [
            f"The bottleneck was {worst}: the run waited for it {share} (nothing was in work {at_rest:.0%} of the time)"
        ]
        for stage in STAGES:
            busy = float(widths[self.in_work[stage] > 0].sum())
            line = f"  {stage:9} {self.work_seconds(stage):8.1f} s of work, busy {busy:4.0%} of the time"
            if stage in self.waiting:
                mean, most = float((self.waiting[stage] * widths).sum()), int(self.waiting[stage].max())
                line += f"; clips waiting for it: {mean:.1f} on average, {most} at most"
            lines.append(line)
        return "\n".join(lines)


def last_run(rows: pa.Table) -> pa.Table:
    """Select the rows of the last run in which any stage worked; none if there was no such run.

    Args:
        rows: With the columns `COLUMNS`.
    """
    started = [pc.is_valid(rows[f"{stage}_started_at"]) for stage in STAGES]
    rows = rows.filter(pc.or_(pc.or_(started[0], started[1]), started[2]))
    if not rows.num_rows:
        return rows
    newest = rows.sort_by([("committed_at", "descending")])["run_id"][0]
    return rows.filter(pc.equal(rows["run_id"], newest))


def stage_load(rows: pa.Table) -> StageLoad:
    """Count how many clips were in each stage, and how many waited for it, over the time of a run.

    Args:
        rows: Rows of one run, with the columns ``*_started_at`` and ``*_seconds``. A stage that a clip did
            not need in this run (its file was there already) has nulls, and is not counted.

    Raises:
        ValueError: No row says when a stage began.
    """
    # Nulls become NaN.
    starts = {stage: rows[f"{stage}_started_at"].cast(pa.int64()).to_numpy() / 1e6 for stage in STAGES}
    ends = {stage: starts[stage] + rows[f"{stage}_seconds"].to_numpy() for stage in STAGES}
    known = np.concatenate([*starts.values(), *ends.values()])
    known = known[np.isfinite(known)]
    if not known.size:
        raise ValueError("rows: no row says when a stage began")
    edges = np.unique(known - known.min())
    if edges.size == 1:  # one stage of one clip, in no time
        edges = np.array([0.0, 1e-6])

    def counted(begin: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.int64]:
        whole = np.isfinite(begin) & np.isfinite(end) & (end > begin)
        change = np.zeros(edges.size, np.int64)
        np.add.at(change, np.searchsorted(edges, begin[whole] - known.min()), 1)
        np.add.at(change, np.searchsorted(edges, end[whole] - known.min()), -1)
        return np.cumsum(change)[:-1]

    in_work = {stage: counted(starts[stage], ends[stage]) for stage in STAGES}
    waits = (("transcode", "download"), ("depth", "transcode"))
    waiting = {stage: counted(ends[before], starts[stage]) for stage, before in waits}
    return StageLoad(edges, in_work, waiting)
