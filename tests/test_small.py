"""The embedded network: what it promises about its output, and that it sees depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import kdepth
from kdepth.errors import DepthError
from kdepth.models.load import small
from kdepth.models.small import SmallNetwork, load_small, upsample

SAMPLES = Path(kdepth.__file__).parent / "data" / "samples"


@pytest.fixture(scope="module")
def network() -> SmallNetwork:
    return load_small()


def picture(height: int, width: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack((y * 255 / height, x * 255 / width, (x + y) % 64 * 3), 2)
    return torch.from_numpy(np.clip(base + rng.normal(0, 20, (count, height, width, 3)), 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("height", "width"), [(360, 640), (640, 360), (33, 47), (32, 32), (144, 176), (720, 1280), (40, 400)]
)
def test_any_size(network: SmallNetwork, height: int, width: int) -> None:
    inverse = network.estimate(picture(height, width))
    assert inverse.shape == (1, height, width)
    assert inverse.dtype == torch.float32
    assert not inverse.requires_grad
    assert torch.isfinite(inverse).all()
    assert inverse.min() > 0
    assert 0.05 < inverse.mean() < 10


def test_a_clip_gives_the_same_bits_in_any_number_of_calls_and_threads(network: SmallNetwork) -> None:
    frames = picture(90, 160, count=5)
    together = network.estimate(frames)
    first, last = network.follow(frames[:2])
    second, last = network.follow(frames[2:3], last)
    third, _ = network.follow(frames[3:], last)
    assert torch.equal(together, torch.cat((first, second, third)))
    _, other = network.follow(picture(160, 90))
    assert torch.equal(together, network.follow(frames, other)[0])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(before, 2))
        assert torch.equal(together, network.estimate(frames))
        assert torch.get_num_threads() == 3 - min(before, 2)
    finally:
        torch.set_num_threads(before)


def test_frames_at_once_give_what_each_alone_does(monkeypatch: pytest.MonkeyPatch) -> None:
    network, frames = load_small(dtype=torch.float32), picture(90, 160, count=5)
    each, last = network.follow(frames)
    monkeypatch.setattr(SmallNetwork, "_follow_each", SmallNetwork._follow_together)  # as on a GPU
    monkeypatch.setattr(small, "FRAMES_TOGETHER", 2)
    monkeypatch.setattr(small, "_ENLARGED_TOGETHER", 2)
    first, before = network.follow(frames[:3])
    second, last_of_all = network.follow(frames[3:], before)
    torch.testing.assert_close(torch.cat((first, second)), each, rtol=1e-4, atol=0)
    torch.testing.assert_close(last_of_all, last, rtol=1e-4, atol=1e-6)


def test_what_stands_still_is_averaged_over_time_and_a_cut_is_not(network: SmallNetwork) -> None:
    still = picture(180, 320, count=10)  # the same scene with other grain
    other = 255 - picture(180, 320).flip(2)
    alone = torch.cat([network.estimate(frame[None]) for frame in still])
    followed = network.estimate(still)
    assert torch.equal(followed[0], alone[0])
    wavering, steady = ((d[1:] - d[:-1])[-4:].abs().mean() for d in (alone, followed))
    assert steady < 0.6 * wavering
    assert torch.equal(network.estimate(torch.cat((still, other)))[-1:], network.estimate(other))


def test_what_moves_is_followed_at_once(network: SmallNetwork) -> None:
    frames = picture(180, 320, count=1).repeat(4, 1, 1, 1)
    for n, frame in enumerate(frames):
        frame[60:140, 40 + 60 * n : 100 + 60 * n] = torch.tensor([230, 40, 40])  # over a picture that stands still
    alone = network.estimate(frames[3:])[0]
    followed = network.estimate(frames)[3]
    inside = slice(70, 130), slice(230, 270)
    assert torch.allclose(followed[inside], alone[inside], rtol=1e-3)


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(64, 64, 3, dtype=torch.uint8), torch.zeros(1, 64, 64, 3),
     torch.zeros(1, 31, 64, 3, dtype=torch.uint8), torch.zeros(0, 64, 64, 3, dtype=torch.uint8)],
)  # fmt: skip
def test_wrong_input_is_refused(network: SmallNetwork, frames: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="frames must be uint8"):
        network.estimate(frames)


def test_damaged_or_missing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(small.WEIGHTS_PATH.read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    monkeypatch.setattr(small, "WEIGHTS_PATH", tmp_path / "damaged")
    with pytest.raises(DepthError, match="SHA-256"):
        load_small()
    monkeypatch.setattr(small, "WEIGHTS_PATH", tmp_path / "missing")
    with pytest.raises(DepthError, match="can't be read"):
        load_small()


def test_weights_file_is_small() -> None:
    assert small.WEIGHTS_PATH.stat().st_size < 16 * 2**20


def test_bfloat16_agrees_with_float32() -> None:
    frames = picture(180, 320)
    exact, fast = (load_small(dtype=dtype).estimate(frames) for dtype in (torch.float32, torch.bfloat16))
    assert ((exact - fast).abs() / exact).median() < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_compute_what_plain_ones_do(dtype: torch.dtype) -> None:
    packed, plain = load_small(dtype=dtype), load_small(dtype=dtype)
    layers = [layer for layer in plain.modules() if isinstance(layer, small.Convolution)]
    assert len(layers) == 59
    if dtype in (torch.float32, small.fast_dtype()) and torch.backends.mkldnn.is_available():
        assert all(layer.packed is not None for layer in layers)
    for layer in layers:
        layer.packed = None
    x = torch.from_numpy(np.random.default_rng(3).uniform(-1, 1, (1, 3, 144, 256))).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), plain(x), rtol=1e-4 if dtype == torch.float32 else 0.02, atol=0)


@pytest.mark.parametrize("size", [3, 5])
def test_pixels_around_are_pooled_as_torch_does(size: int) -> None:
    x = torch.from_numpy(np.random.default_rng(4).uniform(0, 2, (1, 3, 20, 31)))
    mean = torch.nn.functional.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)
    torch.testing.assert_close(small._mean_around(x, size), mean)
    largest = torch.nn.functional.max_pool2d(x, size, 1, size // 2)
    assert torch.equal(small._around(x, size, torch.maximum), largest)


def test_upsampling_puts_an_edge_where_the_picture_has_it() -> None:
    large = torch.full((1, 3, 80, 80), -0.5)
    large[..., 43:] = 0.5
    guide = torch.nn.functional.interpolate(large, (20, 20), mode="area")
    values = torch.where(torch.arange(20) < 11, 1.0, 3.0).expand(1, 20, 20)
    (result,) = upsample(values, guide, large)
    assert (result[:, :42] < 1.3).all()
    assert (result[:, 46:] > 2.7).all()
    assert torch.allclose(upsample(torch.full((1, 20, 20), 2.0), guide, large), torch.full((1, 80, 80), 2.0))


def test_depth_of_unseen_rendered_scenes(network: SmallNetwork) -> None:
    pytest.importorskip("numba", reason="the dependency group 'train' is not installed")
    from train_small import scenes, train

    kinds = list(scenes.SCENES)
    rgb, inverse = train.render_set(len(kinds), first_seed=train.VALIDATION_SEED, kinds=kinds)
    result = train.validate(network, rgb, inverse, kinds)["all"]
    assert result["spearman"] > 0.75
    assert result["spearman"] > result["ramp_spearman"] + 0.1


def test_a_picture_without_any_target_spoils_no_training() -> None:
    pytest.importorskip("numba", reason="the dependency group 'train' is not installed")
    from train_small import train

    target = torch.rand(4, 16, 16)
    target[::2] = torch.nan
    predicted = (torch.rand(4, 16, 16) + 0.5).requires_grad_()
    loss = train.depth_loss(predicted, target) + train.change_loss(predicted, target)
    loss.backward()
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()
    assert (predicted.grad[1] != 0).any()
    assert torch.equal(train.depth_loss(predicted[1::2], target[1::2]), train.depth_loss(predicted, target))
    assert train.depth_loss(predicted[::2], target[::2]) == 0
    assert np.isnan(train.delta1(np.ones((2, 2)), np.zeros((2, 2))))
    assert np.isnan(
        train.flicker(np.ones((2, 4, 4)), np.stack([np.zeros((4, 4, 3)), np.full((4, 4, 3), 255)]).astype(np.uint8))
    )
    with pytest.raises(ValueError, match="steps=0"):
        train.train(SmallNetwork(), [], steps=0)


def test_depth_of_the_sample_clips(network: SmallNetwork) -> None:
    pytest.importorskip("numba", reason="the dependency group 'train' is not installed")
    from train_small import train

    rows = train.sample_correlation(network, SAMPLES, step=24)
    assert len(rows) == 6
    assert np.mean([r["spearman"] for r in rows.values()]) > 0.8
    assert min(r["spearman"] for r in rows.values()) > 0.65
