"""Draw pictures for notebooks. Each function takes data, and draws on the axes it is given or on a new figure."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av
import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mpl_toolkits.mplot3d import Axes3D
from numpy.typing import NDArray

from kdepth.dataset.clip import Clip
from kdepth.errors import DatasetError
from kdepth.html import coloured
from kdepth.notebook.timeline import stage_load

if TYPE_CHECKING:
    from IPython.display import HTML

_COLOUR_MAP = "inferno"  # perceptually uniform; near is bright
_STAGES = {"download": "#4c78a8", "transcode": "#f58518", "depth": "#54a24b"}


def _axes(figsize: tuple[float, float] | None = None) -> Axes:
    return plt.figure(figsize=figsize, layout="constrained").add_subplot()


def unit(clip: Clip) -> str:
    """Name a clip's inverse depth with its unit, for a colour bar."""
    return "inverse depth [1/m]" if clip.row["depth_kind"] == "metric" else "inverse depth [relative]"


def robust_limits(*inverse_depth: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Colour limits without outliers: the 1st and 99th percentile of all the arrays together."""
    values = np.concatenate([array.ravel()[::7] for array in inverse_depth])
    low, high = (float(value) for value in np.percentile(values, (1, 99)))
    return low, max(high, low + 1e-6)


def clip_limits(clip: Clip) -> tuple[float, float]:
    """Colour limits for all frames of a clip, from the statistics in its row; no frame is read.

    The lower one is the 10th percentile of the frames' ``p05``, the upper one the 90th percentile of their ``p95``.
    """
    clip.require("depth")
    low = float(np.percentile([frame["p05"] for frame in clip.row["frames"]], 10))
    high = float(np.percentile([frame["p95"] for frame in clip.row["frames"]], 90))
    return low, max(high, low + 1e-6)


def show_inverse_depth(
    inverse_depth: NDArray[np.floating[Any]],
    *,
    ax: Axes | None = None,
    limits: tuple[float, float] | None = None,
    label: str = "inverse depth [relative]",
) -> Axes:
    """Draw one depth frame with a colour bar; near is bright.

    Args:
        inverse_depth: ``(H, W)``.
        ax: Where to draw; default: a new figure.
        limits: Colour limits; give the same ones to pictures that are compared. Default: `robust_limits`.
        label: What the colour bar says, with the unit.
    """
    ax = ax or _axes()
    low, high = limits or robust_limits(inverse_depth)
    image = ax.imshow(inverse_depth, cmap=_COLOUR_MAP, vmin=low, vmax=high)
    ax.figure.colorbar(image, ax=ax, label=label, fraction=0.035, pad=0.02)
    ax.set_axis_off()
    return ax


def show_frame(clip: Clip, index: int | None = None) -> Figure:
    """Draw one frame beside its depth, in the colours that all frames of the clip share (`clip_limits`).

    Args:
        clip: A clip with depth for the frame.
        index: Number of the frame; default: the middle one of those that have depth.
    """
    index = _middle(clip) if index is None else index
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
    left.imshow(clip.frame(index))
    left.set_axis_off()
    show_inverse_depth(clip.inverse_depth(index), ax=right, limits=clip_limits(clip), label=unit(clip))
    figure.suptitle(f"{clip.clip_id}, frame {index}, depth by {clip.row['depth_model']}", fontsize=9)
    return figure


def _middle(clip: Clip) -> int:
    clip.require("depth")
    return clip.depth_indices[len(clip.depth_indices) // 2]


def show_clips(clips: Sequence[Clip], *, frames_per_clip: int = 3) -> Figure:
    """Draw some frames of each clip beside their depth, one clip a row; a clip's depth has the same colour limits.

    Args:
        clips: Clips with status ok.
        frames_per_clip: How many frames of each clip, spread evenly over those that have depth.
    """
    if not clips:
        raise ValueError("clips is empty: there is nothing to show")
    for clip in clips:
        clip.require("depth")
    columns = min(frames_per_clip, max(len(clip.depth_indices) for clip in clips))
    figure = plt.figure(figsize=(2.9 * 2 * columns, 2.0 * len(clips)), layout="constrained")
    for figure_row, clip in zip(figure.subfigures(len(clips), 1, squeeze=False)[:, 0], clips, strict=True):
        have = clip.depth_indices
        picks = sorted({have[int((k + 0.5) / columns * len(have))] for k in range(columns)})
        depths = [clip.inverse_depth(index) for index in picks]
        limits = robust_limits(*depths)
        title = f"{clip.clip_id}  ({clip.row['label'] or 'no label'}), depth by {clip.row['depth_model']}"
        figure_row.suptitle(title, fontsize=9, parse_math=False)  # labels may hold a $
        ratios = [1.0] * (2 * columns) + [0.03]  # the last one is the colour bar, at the same place in all rows
        *axes, colours = figure_row.subplots(1, 2 * columns + 1, width_ratios=ratios)
        for ax in axes:
            ax.set_axis_off()
        for k, (index, depth) in enumerate(zip(picks, depths, strict=True)):
            axes[2 * k].imshow(clip.frame(index))
            axes[2 * k].set_title(f"frame {index}", fontsize=8)
            image = axes[2 * k + 1].imshow(depth, cmap=_COLOUR_MAP, vmin=limits[0], vmax=limits[1])
        figure_row.colorbar(image, cax=colours, label=unit(clip))
    return figure


def depth_video(clip: Clip, path: str | Path, *, stable: bool = False) -> Path:
    """Write a clip's frames beside their depth, as an H.264 video that browsers play, at their own times.

    Args:
        clip: A clip; its frames without depth are left out.
        path: The ``.mp4`` to make.
        stable: As for `Clip.inverse_depth`.

    Returns:
        The path; in a notebook, show it with ``IPython.display.Video(path, embed=True)``.
    """
    low, high = clip_limits(clip)
    times = {frame["index"]: frame["time_seconds"] for frame in clip.row["frames"]}
    pts = -1
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        rate = Fraction(len(times) / clip.row["duration_seconds"]).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "30", "preset": "veryfast"})
        stream.time_base = stream.codec_context.time_base = Fraction(1, 90_000)
        stream.width, stream.height, stream.pix_fmt = 2 * clip.row["width"], clip.row["height"], "yuv420p"
        for index, rgb in enumerate(clip.frames()):
            if index in times:
                depth = coloured(clip.inverse_depth(index, stable=stable), low, high)
                frame = av.VideoFrame.from_ndarray(np.hstack([rgb, depth]), format="rgb24")
                pts = max(round(90_000 * times[index]), pts + 1)
                frame.pts, frame.time_base = pts, stream.time_base
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Path(path)


def point_cloud(clip: Clip, index: int | None = None, *, num_points: int = 20_000) -> Figure:
    """Draw a frame as coloured points in space, seen from the left and from the right of the camera.

    Args:
        clip: A clip with depth for the frame. Relative depth has no unit, and an unknown shift of its inverse distorts
            the shape.
        index: Number of the frame; default: the middle one of those that have depth.
        num_points: How many pixels to draw, chosen at random with a fixed seed.
    """
    points, rgb, title = _cloud(clip, index, num_points)
    x, y, z = points.T
    name = "[m]" if clip.row["depth_kind"] == "metric" else "[relative]"
    figure = plt.figure(figsize=(12, 4.2))
    for place, azimuth_deg in enumerate((-115, -65)):
        # matplotlib's own margins would be half the picture
        ax = cast(Axes3D, figure.add_axes((0.01 + 0.5 * place, 0.06, 0.48, 0.88), projection="3d"))
        ax.scatter(x, z, -y, c=rgb / 255.0, s=1.5, linewidths=0)
        ax.set_box_aspect((np.ptp(x), np.ptp(z), np.ptp(y)), zoom=1.1)
        ax.set(xlabel=f"x {name}", ylabel=f"depth {name}", zlabel=f"height {name}")
        ax.locator_params(nbins=4)
        ax.tick_params(labelsize=7)
        ax.view_init(elev=14, azim=azimuth_deg)
    figure.suptitle(title, fontsize=9)
    return figure


def point_viewer(clip: Clip, index: int | None = None, *, num_points: int = 20_000) -> HTML:
    """Show a frame as points in space that you turn with the mouse, in a notebook.

    It is trimesh's viewer: a page that holds three.js and the points, and loads nothing from a network. It begins where
    the camera was. Web pages that run no scripts show nothing: there `point_cloud` is the picture.

    Args:
        clip, index, num_points: As for `point_cloud`.
    """
    import trimesh  # takes 0.3 s
    from trimesh.viewer.notebook import scene_to_notebook

    points, rgb, _ = _cloud(clip, index, num_points)
    scene = trimesh.Scene(trimesh.PointCloud(points * [1, -1, -1], colors=rgb))  # glTF's axes: y up, z backward
    scene.camera_transform = np.eye(4)
    viewer: HTML = scene_to_notebook(scene, height=480)
    # Of 1 px, as they are, points hardly cover anything.
    larger = "gltf.scene.traverse(one=>{if(one.isPoints)one.material.size=3;});scene.add(gltf.scene);"
    viewer.data = viewer.data.replace("scene.add(gltf.scene);", larger)
    return viewer


def _cloud(clip: Clip, index: int | None, num_points: int) -> tuple[NDArray[np.float32], NDArray[np.uint8], str]:
    """Some of a frame's points and their colours, and what to call them."""
    index = _middle(clip) if index is None else index
    focal_px = {frame["index"]: frame["focal_length_px"] for frame in clip.row["frames"] or ()}.get(index)
    # Without a focal length: a horizontal field of view of 60 degrees, as phones have.
    fov_deg = float(np.degrees(2 * np.arctan(0.5 * clip.row["width"] / focal_px))) if focal_px else 60.0
    points, rgb = clip.points(index, fov_deg=fov_deg)
    if not len(points):
        raise DatasetError(f"frame {index} of {clip.clip_id} is infinitely far everywhere: there are no points to draw")
    # Far points are left out: with them the near things would be a few dots in a corner.
    near = np.flatnonzero(points[:, 2] < 4 * np.percentile(points[:, 2], 5))
    chosen = np.random.default_rng(0).permutation(near)[:num_points]
    return points[chosen], rgb[chosen], f"{clip.clip_id}, frame {index}, {fov_deg:.0f} degrees across"


def _mark_shots(clip: Clip, ax: Axes) -> None:
    """Draw a line where a shot begins, but for the first."""
    times = {frame["index"]: frame["time_seconds"] for frame in clip.row["frames"]}
    for number, first in enumerate(clip.shots[1:]):
        ax.axvline(times[first], color="black", linestyle=":", linewidth=1, label=None if number else "cut")


def statistics_over_time(clip: Clip, *, ax: Axes | None = None) -> Axes:
    """Draw the median and the 5th to 95th percentile of a clip's inverse depth over its time; shots are marked."""
    ax = ax or _axes((8, 3))
    clip.require("depth")
    frames = clip.row["frames"]
    time_seconds = [frame["time_seconds"] for frame in frames]
    low, high = ([frame[name] for frame in frames] for name in ("p05", "p95"))
    few = len(frames) <= 12  # no lines between frames that are far apart
    if few:
        ax.vlines(time_seconds, low, high, alpha=0.25, linewidth=6, label="5 % to 95 %")
    else:
        ax.fill_between(time_seconds, low, high, alpha=0.25, label="5 % to 95 %")
    ax.plot(time_seconds, [frame["median"] for frame in frames], "o" if few else "-", label="median")
    _mark_shots(clip, ax)
    ax.set(xlabel="time [s]", ylabel=unit(clip), title=clip.clip_id)
    ax.legend(loc="best")
    return ax


def flicker_over_time(clip: Clip, *, ax: Axes | None = None) -> Axes:
    """Draw a clip's `Clip.scale_jumps` over its time: as stored, and with ``stable=True``; shots are marked."""
    ax = ax or _axes((8, 3))
    time_seconds = [frame["time_seconds"] for frame in clip.row["frames"]]
    for stable, name in ((False, "as stored"), (True, "stable=True")):
        jumps = 100 * clip.scale_jumps(stable=stable)
        mean = f"{np.nanmean(jumps):.2f} %" if np.isfinite(jumps).any() else "unknown"
        ax.plot(time_seconds, jumps, ".-", linewidth=1, markersize=3, label=f"{name}, mean {mean}")
    _mark_shots(clip, ax)
    ax.set(xlabel="time [s]", ylabel="jump of the scale [%]", title=clip.clip_id)
    ax.set_ylim(bottom=0)
    ax.legend(loc="upper right")
    return ax


def nearness_by_label(rows: pa.Table, *, ax: Axes | None = None) -> Axes:
    """Draw how near the nearest things are, by action class, one dot a clip.

    The value is the 95th percentile of inverse depth divided by the median. As a ratio it can be compared between clips
    of a relative model: 1 is a wall, 5 is someone close in front of a far scene.

    Args:
        rows: Rows with the columns ``label`` and ``frames``.
        ax: Where to draw; default: a new figure.
    """
    by_label: dict[str, list[float]] = {}
    for row in rows.to_pylist():
        if row["frames"]:
            ratios = [frame["p95"] / max(frame["median"], 1e-6) for frame in row["frames"]]
            by_label.setdefault(row["label"] or "no label", []).append(float(np.mean(ratios)))
    labels = sorted(by_label, key=lambda label: float(np.mean(by_label[label])))
    ax = ax or _axes((8, 1 + 0.3 * len(labels)))
    for line, label in enumerate(labels):
        ax.plot(by_label[label], [line] * len(by_label[label]), "o", alpha=0.6)
    ax.set_yticks(range(len(labels)), labels, parse_math=False)
    ax.set_xlabel("95th percentile over median of inverse depth (larger: something is close)")
    return ax


def timeline(rows: pa.Table, *, ax: Axes | None = None) -> Axes:
    """Draw when each stage worked: one line a clip, one bar a stage, in order of the first start.

    Args:
        rows: Rows with the columns ``clip_id``, ``status``, ``*_started_at`` and ``*_seconds``.
        ax: Where to draw; default: a new figure.
    """
    table = [row for row in rows.to_pylist() if any(row[f"{stage}_started_at"] for stage in _STAGES)]
    if not table:
        raise ValueError("rows: no row says when a stage began")

    def began(row: dict[str, Any]) -> Any:
        return min(row[f"{stage}_started_at"] for stage in _STAGES if row[f"{stage}_started_at"])

    table.sort(key=began)
    start = began(table[0])
    ax = ax or _axes((11, 1 + 0.22 * min(len(table), 60)))
    for stage, colour in _STAGES.items():
        bars = [(line, row) for line, row in enumerate(table) if row[f"{stage}_started_at"]]
        lines = [line for line, _ in bars]
        begin = np.array([(row[f"{stage}_started_at"] - start).total_seconds() for _, row in bars])
        seconds = np.array([row[f"{stage}_seconds"] or 0.0 for _, row in bars])
        if len(table) <= 60:
            ax.barh(lines, seconds, left=begin, color=colour, label=stage)
        else:  # 20,000 clips with bars would take a minute
            ax.hlines(lines, begin, begin + seconds, color=colour, label=stage, linewidth=1.5)
    if len(table) <= 60:
        ax.set_yticks(range(len(table)), [row["clip_id"] for row in table], fontsize=7)
    else:
        ax.set_ylabel("clip")
    ax.invert_yaxis()
    ax.set_xlabel("seconds since the first stage began")
    handles = [Patch(color=colour, label=stage) for stage, colour in _STAGES.items()]  # also of a stage without bars
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(_STAGES), frameon=False)
    return ax


def show_stable(clip: Clip, *, num_frames: int = 4) -> Figure:
    """Draw neighbouring frames from the middle of a clip, their depth as stored, and with ``stable=True``.

    Args:
        clip: A clip with depth. All its frames have the same colours (`robust_limits`).
        num_frames: How many frames at most.
    """
    have = clip.depth_indices
    start = max((len(have) - num_frames) // 2, 0)
    picks = have[start : start + num_frames]
    stored, steady = ([clip.inverse_depth(index, stable=stable) for index in picks] for stable in (False, True))
    limits = robust_limits(*stored, *steady)
    figure, axes = plt.subplots(3, len(picks), figsize=(2.8 * len(picks), 4.8), layout="constrained", squeeze=False)
    for k, index in enumerate(picks):
        axes[0, k].imshow(clip.frame(index))
        axes[0, k].set_title(f"frame {index}", fontsize=8)
        axes[1, k].imshow(stored[k], cmap=_COLOUR_MAP, vmin=limits[0], vmax=limits[1])
        image = axes[2, k].imshow(steady[k], cmap=_COLOUR_MAP, vmin=limits[0], vmax=limits[1])
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for row, name in enumerate(("video", "as stored", "stable=True")):
        axes[row, 0].set_ylabel(name, fontsize=9)
    figure.colorbar(image, ax=list(axes[1:].flat), label=unit(clip), fraction=0.02, pad=0.01)
    figure.suptitle(f"{clip.clip_id}, depth by {clip.row['depth_model']}", fontsize=9)
    return figure


def run_timeline(rows: pa.Table) -> Figure:
    """Draw a run: when each stage worked, how many clips were in work and waiting, and the bottleneck.

    Args:
        rows: Rows of one run (`kdepth.notebook.timeline.last_run`), with the columns that `timeline` needs.
    """
    load = stage_load(rows)
    height = 0.22 * min(rows.num_rows, 60)
    figure = plt.figure(figsize=(11, 4.4 + height), layout="constrained")
    bars, in_work, waiting = figure.subplots(3, 1, height_ratios=(1 + height, 1.5, 1.5), sharex=True)
    timeline(rows, ax=bars).set_xlabel("")
    below = np.zeros(load.edges.size - 1)
    for stage, colour in _STAGES.items():
        in_work.stairs(below + load.in_work[stage], load.edges, baseline=below, fill=True, color=colour)
        below = below + load.in_work[stage]
    in_work.set(ylabel="clips in work")
    for stage, name in (("transcode", "downloaded, not yet transcoded"), ("depth", "transcoded, no depth yet")):
        waiting.stairs(load.waiting[stage], load.edges, color=_STAGES[stage], label=name, linewidth=1.5)
    waiting.set(ylabel="clips waiting", xlabel="seconds since the first stage began")
    waiting.set_ylim(0, max(1.0, waiting.get_ylim()[1]))
    waiting.legend(loc="upper right", frameon=False)
    for ax in (in_work, waiting):
        ax.locator_params(axis="y", integer=True)
    figure.suptitle(load.summary().splitlines()[0], fontsize=10)
    return figure
