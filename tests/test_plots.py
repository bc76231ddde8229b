from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
from conftest import Run
from matplotlib import pyplot as plt

import kdepth
from kdepth import plots

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
        first, last = clip.depth_indices[0], clip.depth_indices[-1]
        assert np.array_equal(images[0].get_array(), clip.frame(first))
        assert np.array_equal(images[1].get_array(), clip.inverse_depth(first))
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


def test_one_stray_pixel_does_not_decide_the_colours() -> None:
    depth = np.linspace(0.1, 1, 14_400).reshape(90, 160)
    depth[0, 0] = 60_000
    low, high = plots.robust_limits(depth)
    assert 0.1 <= low < 0.15
    assert 0.95 < high <= 1
    ax = plots.show_inverse_depth(depth, label="inverse depth [1/m]")
    assert ax.images[0].get_clim() == (low, high)
