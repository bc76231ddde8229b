"""Who was busy when in a run, what waited, and where the bottleneck was: all from the columns of its rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

STAGES = ("download", "transcode", "depth")
# The columns that the functions here read.
COLUMNS = (
    *("clip_id", "run_id", "committed_at"),
    *(f"{stage}_{what}" for stage in STAGES for what in ("started_at", "seconds")),
)


@dataclass(frozen=True, slots=True)
class StageLoad:
    """How many clips each stage had in work and waiting, from one event of a run to the next.

    Attributes:
        edges: ``(N + 1,)`` float64, seconds since the first stage began, ascending: where something began or ended.
        in_work: Stage -> ``(N,)`` int: clips in it between two edges.
        waiting: ``transcode``: downloaded but not yet transcoded; ``depth``: transcoded but without depth yet;
            ``(N,)`` int each. Clips that failed wait for nothing.
    """

    edges: NDArray[np.float64]
    in_work: dict[str, NDArray[np.int64]]
    waiting: dict[str, NDArray[np.int64]]

    @property
    def seconds(self) -> float:
        """From the first stage's start to the last one's end."""
        return float(self.edges[-1])

    def work_seconds(self, stage: str) -> float:
        """Time that the stage spent, all clips together."""
        return float(np.sum(self.in_work[stage] * np.diff(self.edges)))

    def bottleneck_seconds(self) -> dict[str, float]:
        """Stage -> time for which the run waited for it; what is left of `seconds` is mostly the start of workers.

        While clips wait for depth, that is depth. While clips wait to be transcoded, it is what the workers do that
        they wait for: transcode and depth, by the clips that each has in work (without a GPU one worker does both).
        While nothing waits, it is the download if one is under way, else what is in work.
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
        """Where the bottleneck was, and what each stage did, in a few lines for a lab book."""
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
    """The rows of the last run in which any stage worked; none if there was no such run.

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
    """How many clips each stage had in work and waiting over the time of a run.

    Args:
        rows: Rows of one run, with the columns ``*_started_at`` and ``*_seconds``. A stage that a clip did
            not need in this run (its file was there already) has nulls and counts for nothing.

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

    return StageLoad(
        edges,
        {stage: counted(starts[stage], ends[stage]) for stage in STAGES},
        {
            "transcode": counted(ends["download"], starts["transcode"]),
            "depth": counted(ends["transcode"], starts["depth"]),
        },
    )
