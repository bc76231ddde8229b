import base64
import html
import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import matplotlib
import numpy as np
import pytest
import trimesh
from conftest import Run
from matplotlib import pyplot as plt

import kdepth
from kdepth import plots
from kdepth.notebook.timeline import stage_load
from kdepth.schema import new_row, rows_to_table

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def test_rgb_and_depth_of_a_clip_share_their_place_and_limits(sample_run: Run) -> None:
    clips = list(kdepth.open_dataset(sample_run.root))[:2]
    figure = plots.show_clips(clips, frames_per_clip=3)
    for part, clip in zip(figure.subfigs, clips, strict=True):
        images = [ax.images[0] for ax in part.axes if ax.images]
        assert len(images) == 6
        have = clip.depth_indices
        first, middle, last = have[len(have) // 6], have[len(have) // 2], have[len(have) * 5 // 6]
        assert np.array_equal(images[0].get_array(), clip.frame(first))
        assert np.array_equal(images[1].get_array(), clip.inverse_depth(first))
        assert np.array_equal(images[2].get_array(), clip.frame(middle))
        assert np.array_equal(images[5].get_array(), clip.inverse_depth(last))
        assert len({images[i].get_clim() for i in (1, 3, 5)}) == 1
        assert clip.clip_id in part._suptitle.get_text()
        assert "small" in part._suptitle.get_text()
    with pytest.raises(ValueError, match="clips is empty"):
        plots.show_clips([])


def test_the_timeline_has_a_bar_for_each_stage_of_each_clip(sample_run: Run) -> None:
    rows = kdepth.open_dataset(sample_run.root).table()
    ax = plots.timeline(rows)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["download", "transcode", "depth"]
    assert len(ax.patches) == 3 * rows.num_rows
    assert min(bar.get_x() for bar in ax.patches) == 0
    widths = sorted(bar.get_width() for bar in ax.patches)
    expected = sorted(
        rows["download_seconds"].to_pylist() + rows["transcode_seconds"].to_pylist() + rows["depth_seconds"].to_pylist()
    )
    assert widths == pytest.approx(expected)
    with pytest.raises(ValueError, match="no row says"):
        plots.timeline(rows.slice(0, 0))


def test_a_long_run_has_a_line_for_each_clip() -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    rows = []
    for k in range(100):
        times = {"download": (k, 1.0), "transcode": (k + 1, 2.0), "depth": (k + 3, 4.0)}
        row = new_row(clip_id=f"clip{k}", run_id="run", committed_at=start)
        for stage, (begin, seconds) in times.items():
            row |= {f"{stage}_started_at": start + timedelta(seconds=begin), f"{stage}_seconds": seconds}
        rows.append(row)
    bars = plots.run_timeline(rows_to_table(rows)).axes[0]
    segments = [collection.get_segments() for collection in bars.collections]
    assert [len(lines) for lines in segments] == [100, 100, 100]
    assert segments[2][7].tolist() == [[10, 7], [14, 7]]


def test_a_run_is_shown_with_its_queues_and_its_bottleneck(sample_run: Run) -> None:
    rows = kdepth.open_dataset(sample_run.root).table()
    figure = plots.run_timeline(rows)
    bars, in_work, waiting = figure.axes
    assert len(bars.patches) == 3 * rows.num_rows
    load = stage_load(rows)
    # One on top of the other: the upper edge is all clips that are in work.
    assert np.array_equal(in_work.patches[-1].get_data().values, sum(load.in_work.values()))
    assert [list(step.get_data().values) for step in waiting.patches] == [list(q) for q in load.waiting.values()]
    assert "The bottleneck was " in figure.get_suptitle()
    assert bars.get_xlim() == waiting.get_xlim()


def test_all_frames_of_a_clip_have_the_same_colours(sample_run: Run) -> None:
    clip = next(iter(kdepth.open_dataset(sample_run.root)))
    limits = set()
    for index in clip.depth_indices[:2]:
        picture = next(ax.images[0] for ax in plots.show_frame(clip, index).axes if ax.images and ax.images[0].colorbar)
        limits.add(picture.get_clim())
        assert np.array_equal(picture.get_array(), clip.inverse_depth(index))
    assert limits == {plots.clip_limits(clip)}
    assert all(low < high for low, high in limits)


def test_the_steady_view_is_shown_below_what_is_stored(sample_run: Run) -> None:
    clip = next(iter(kdepth.open_dataset(sample_run.root)))
    figure = plots.show_stable(clip, num_frames=3)
    images = [ax.images[0] for ax in figure.axes if ax.images]
    middle = clip.depth_indices[(len(clip.depth_indices) - 3) // 2]
    assert np.array_equal(images[0].get_array(), clip.frame(middle))
    assert np.array_equal(images[3].get_array(), clip.inverse_depth(middle))
    assert np.array_equal(images[6].get_array(), clip.inverse_depth(middle, stable=True))
    assert len({image.get_clim() for image in images[3:]}) == 1
    # Two frames a second have no neighbours: there is nothing to measure, and that is what the picture says.
    assert np.isnan(clip.scale_jumps()).all()
    assert "unknown" in plots.flicker_over_time(clip).get_legend().get_texts()[0].get_text()


def test_one_stray_pixel_does_not_decide_the_colours() -> None:
    depth = np.linspace(0.1, 1, 14_400).reshape(90, 160)
    depth[0, 0] = 60_000
    low, high = plots.robust_limits(depth)
    assert 0.1 <= low < 0.15
    assert 0.95 < high <= 1
    ax = plots.show_inverse_depth(depth, label="inverse depth [1/m]")
    assert ax.images[0].get_clim() == (low, high)


def test_a_point_cloud_is_drawn_from_two_sides(sample_run: Run) -> None:
    clip = next(iter(kdepth.open_dataset(sample_run.root)))
    index = clip.depth_indices[1]
    figure = plots.point_cloud(clip, index, num_points=500)
    assert "60 degrees across" in figure.get_suptitle()
    points = {tuple(point) for point in clip.points(index, fov_deg=60)[0].tolist()}
    left, right = figure.axes
    assert left.azim != right.azim
    for ax in figure.axes:
        x, z, height = ax.collections[0]._offsets3d
        drawn = np.stack([x, -height, z], 1).tolist()
        assert len(drawn) == 500
        assert points.issuperset(map(tuple, drawn))


def test_the_viewer_holds_its_points_and_loads_nothing_from_a_network(sample_run: Run) -> None:
    clip = next(iter(kdepth.open_dataset(sample_run.root)))
    index = clip.depth_indices[1]
    page = html.unescape(plots.point_viewer(clip, index, num_points=500).data)
    assert "THREE.WebGLRenderer" in page
    assert "material.size=3" in page
    (model,) = re.findall(r'base64_data="([A-Za-z0-9+/=]+)"', page)
    scene = trimesh.load(io.BytesIO(base64.b64decode(model)), file_type="glb")
    (cloud,) = scene.geometry.values()
    points, rgb = clip.points(index, fov_deg=60)
    colours = {tuple(point): tuple(colour) for point, colour in zip(points.tolist(), rgb.tolist(), strict=True)}
    assert cloud.vertices.shape == (500, 3)
    for point, colour in zip(cloud.vertices * [1, -1, -1], cloud.colors, strict=True):
        assert colours[tuple(point)] == tuple(colour[:3])
    # What a browser would load: addresses in tags and style sheets, imports. Those that stand in comments it does not.
    loads = r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import|\bimport\s*\("""
    assert not re.search(loads, page)
    assert set(re.findall(r"https?://[\w.]+", page)) <= {"https://github.com", "http://www.w3.org"}
