import csv
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from matplotlib import pyplot as plt

import kdepth
from kdepth import plots, samples
from kdepth.schema import parse_kinetics_name
from kdepth.video.frames import read_frames
from made_clips import joined_clip


def test_sample_clips_are_small_and_named_as_in_kinetics() -> None:
    clips = samples.rendered_clips()
    assert len(clips) == 6
    folder = next(iter(clips.values())).parent
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 3_000_000
    for clip_id, path in clips.items():
        assert parse_kinetics_name(clip_id)
        first = next(read_frames(path))
        assert first.rgb.shape == (360, 640, 3)
    with (folder / "val.csv").open() as file:
        annotated = {
            f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
            for row in csv.DictReader(file)
        }
    assert annotated == set(clips)


@pytest.mark.parametrize("clip_id", samples.rendered_clips())
def test_true_depth_belongs_to_the_frames(clip_id: str) -> None:
    truth = list(samples.true_inverse_depth(clip_id))
    frames = [frame.rgb for frame in read_frames(samples.rendered_clips()[clip_id])]
    assert len(truth) == len(frames) >= 72
    for depth in truth:
        assert depth.shape == (90, 160)
        assert np.isfinite(depth).all()
        assert depth.min() >= 0
        assert depth.max() > 0.05  # something nearer than 20 m
    # The camera or something in the scene moves, and depth with it.
    assert np.abs(truth[-1] - truth[0]).mean() > 1e-3
    assert np.abs(frames[-1].astype(int) - frames[0].astype(int)).mean() > 1


def test_unknown_clips_are_named() -> None:
    with pytest.raises(KeyError, match="no true depth for 'x'"):
        next(samples.true_inverse_depth("x"))


async def test_the_server_lists_them_as_a_mirror_does(sample_server: samples.SampleServer, tmp_path: Path) -> None:
    urls = sample_server.url_list.read_text().split()
    assert sum(url.endswith(".tar.gz") for url in urls) == 1
    archive = next(url for url in urls if url.endswith(".tar.gz"))
    await kdepth.fetch(urls[0], tmp_path / "clip.mp4", allow_private_hosts=True)
    assert (tmp_path / "clip.mp4").read_bytes() == next(iter(samples.rendered_clips().values())).read_bytes()
    with tarfile.open(Path(sample_server.url_list).with_name(archive.rpartition("/")[2])) as tar:
        assert [name.startswith("val/") for name in tar.getnames()] == [True] * 3


def test_predicted_depth_has_the_order_of_the_true_depth(sample_run: Run) -> None:
    table = samples.rank_correlations(kdepth.open_dataset(sample_run.root))
    assert table["clip_id"].to_pylist() == list(samples.rendered_clips())
    correlations = table["spearman"].to_pylist()
    assert np.mean(correlations) > 0.8
    assert min(correlations) > 0.5


def test_a_film_of_several_clips_has_their_shots(sample_run: Run, tmp_path: Path) -> None:
    ds = kdepth.open_dataset(sample_run.root)
    crew, desk, hall, *_ = (ds[clip_id] for clip_id in samples.rendered_clips())
    film = joined_clip([crew, desk, hall], tmp_path / "joined.mkv", num_frames=20)
    assert film.shots == [0, 20, 40]
    assert film.depth_indices == list(range(60))
    assert np.isnan(film.scale_jumps()[[0, 20, 40]]).all()
    assert film.frame(20).shape == (*film.inverse_depth(20).shape, 3) == (360, 640, 3)
    ax = plots.statistics_over_time(film)
    cuts = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"]
    assert cuts == pytest.approx([20 / 24, 40 / 24])
    assert [text.get_text() for text in ax.get_legend().get_texts()].count("cut") == 1
    plt.close("all")
