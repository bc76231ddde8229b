"""What a run did, for a terminal and for a notebook."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version

from kdepth.html import card

_MOST_NAMED = 10  # clips named in one line of the report


@dataclass(slots=True, repr=False)
class RunReport:
    """What a run did.

    Attributes:
        run_id: In the rows that it committed.
        num_ok, num_failed: Clips committed by it.
        num_kept: Failed clips that had been ok, and stay as they were.
        num_depth_frames: Depth frames written.
        seconds: Wall time until all rows were there; merging and indexing them at the end is not counted.
        version: Of the Lance dataset afterwards.
        failures: How many failed by ``(stage, error class)``.
        damage: What was wrong with the files of clips that had been ok, and were made again: ``clip_id`` -> problem.
        other_content: Clips that are in more than one source with other content; the first that was ok is kept.
        num_sources: What there was to do: URLs, archives.
        num_stay_failed: Clips that failed in an earlier run, and were not taken up.
        num_relabelled: Clips of earlier runs that got another label or split.
        num_missing: Rows of `pending` that no row came of, archives apart: none, unless the pipeline filters.
        annotated_without_clip: Annotated clips, not in the dataset yet, that no source held; None if there were no
            archives to look in, or not the whole of them was wanted.
        clips_without_annotation: Clips of archives that no annotation names; None without annotations.
    """

    run_id: str
    num_ok: int = 0
    num_failed: int = 0
    num_kept: int = 0
    num_depth_frames: int = 0
    seconds: float = 0.0
    version: int = 0
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    damage: dict[str, str] = field(default_factory=dict)
    other_content: list[str] = field(default_factory=list)
    num_sources: int = 0
    num_stay_failed: int = 0
    num_relabelled: int = 0
    num_missing: int = 0
    annotated_without_clip: int | None = None
    clips_without_annotation: int | None = None

    def notes(self) -> dict[str, str]:
        """What else there is to say, besides how many clips were made: only what is not zero or unknown."""
        again = [f"{clip_id} ({problem})" for clip_id, problem in self.damage.items()]
        counts = {
            "failed, but had been ok, and stay as they were": self.num_kept,
            "failed in earlier runs, not taken up (retry_failed=True does)": self.num_stay_failed,
            "another label or split": self.num_relabelled,
            "sources without a row (run again to do them)": self.num_missing,
        }
        notes = {name: str(count) for name, count in counts.items() if count}
        if again:
            notes[f"made again ({len(again)})"] = _named(again)
        if self.other_content:
            name = f"{len(self.other_content)} clips are in more than one source with other content; kept the first"
            notes[name] = _named(self.other_content)
        if self.annotated_without_clip is not None:
            notes["annotated, but in no archive"] = str(self.annotated_without_clip)
        if self.clips_without_annotation is not None:
            notes["in an archive, but not annotated"] = str(self.clips_without_annotation)
        return notes

    def _failures(self) -> list[str]:
        return [f"{count} x {stage}: {error}" for (stage, error), count in self.failures.most_common()]

    def __str__(self) -> str:
        if not self.num_ok + self.num_failed:
            return self._why_nothing()
        rate = self.num_depth_frames / max(self.seconds, 1e-9)
        first = (
            f"{self.num_ok} clips ok, {self.num_failed} failed, {self.num_depth_frames} depth frames "
            f"in {self.seconds:.0f} s ({rate:.1f} frames/s); dataset version {self.version}"
        )
        return "\n  ".join([first, *self._failures(), *(f"{name}: {text}" for name, text in self.notes().items())])

    __repr__ = __str__

    def _why_nothing(self) -> str:
        more = f" {self.num_relabelled} clips have another label or split now." if self.num_relabelled else ""
        if self.num_sources:
            what = "archives without videos, or without any that was missing"
            return f"No clip came of {self.num_sources} sources: {what}.{more}"
        if more:
            return f"No clip to make.{more}"
        if self.num_stay_failed:
            return (
                f"Nothing to do: every clip is in the dataset as asked for, but for {self.num_stay_failed} that failed "
                "in earlier runs (retry_failed=True takes them up)."
            )
        return "Nothing to do: every clip is in the dataset as asked for."

    def _repr_html_(self) -> str:
        """For a notebook: the lines of a lab book."""
        if not self.num_ok + self.num_failed:
            return card(self, {})
        per_second = self.num_depth_frames / max(self.seconds, 1e-9)
        per_minute = 60 * (self.num_ok + self.num_failed) / max(self.seconds, 1e-9)
        facts = {
            "clips": f"{self.num_ok:,} ok, {self.num_failed:,} failed",
            "failures": "\n".join(self._failures()) or None,
            **self.notes(),
            "depth frames": f"{self.num_depth_frames:,}",
            "time": f"{self.seconds:,.0f} s: {per_second:.1f} depth frames/s, {per_minute:.1f} clips/min",
            "dataset": f"version {self.version}",
            "rows": "ds.table(where=f\"run_id = '{report.run_id}'\")",
            "made with": ", ".join(f"{name} {version(name)}" for name in ("kdepth", "torch", "ray", "pylance")),
        }
        return card("kdepth run", facts)


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
