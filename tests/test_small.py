"""The embedded network: what it promises about its output, and that it sees depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import kdepth
from kdepth.errors import DepthError
from kdepth.models import small
from kdepth.models.small import SmallNetwork, load_small

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_clip_gives_the_same_in_any_number_of_calls_and_threads(dtype: torch.dtype) -> None:
    network, frames = load_small(dtype=dtype), picture(90, 160, count=19)
    together = network.estimate(frames)
    first, last = network.follow(frames[:2])
    second, last = network.follow(frames[2:3], last)
    third, _ = network.follow(frames[3:], last)
    before, by_threads = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            by_threads.append(network.estimate(frames))
    finally:
        torch.set_num_threads(before)
    # Bit for bit in bfloat16; in float32 torch computes a single frame in another order.
    tolerance = 1e-5 if dtype == torch.float32 else 0
    torch.testing.assert_close(torch.cat((first, second, third)), together, rtol=tolerance, atol=0)
    for found in by_threads:
        torch.testing.assert_close(found, together, rtol=tolerance, atol=0)
    _, other = network.follow(picture(160, 90))
    assert torch.equal(together, network.follow(frames, other)[0]), "frames of another size are ignored"


def test_depth_is_enlarged_by_pixel_centres(network: SmallNetwork) -> None:
    frames = picture(90, 160, count=2)
    with torch.inference_mode():
        pixels = torch.nn.functional.interpolate(
            frames.permute(0, 3, 1, 2), (144, 256), mode="bilinear", antialias=True
        )
        alone = network((pixels[:1].float() / 127.5 - 1).to(network.coarse.weight.dtype))
        expected = torch.nn.functional.interpolate(alone[:, None], (90, 160), mode="bilinear")[:, 0]
    torch.testing.assert_close(network.estimate(frames)[:1], expected, rtol=1e-5, atol=0)


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
    content = bytearray(small.SMALL_WEIGHTS.read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    monkeypatch.setattr(small, "SMALL_WEIGHTS", tmp_path / "damaged")
    with pytest.raises(DepthError, match="SHA-256"):
        load_small()
    monkeypatch.setattr(small, "SMALL_WEIGHTS", tmp_path / "missing")
    with pytest.raises(DepthError, match="can't be read"):
        load_small()


def test_weights_file_is_small() -> None:
    assert small.SMALL_WEIGHTS.stat().st_size < 16 * 2**20


def test_bfloat16_agrees_with_float32() -> None:
    frames = picture(180, 320)
    exact, fast = (load_small(dtype=dtype).estimate(frames) for dtype in (torch.float32, torch.bfloat16))
    assert ((exact - fast).abs() / exact).median() < 0.03


@pytest.mark.parametrize("size", [3, 5])
def test_pixels_around_are_pooled_as_torch_does(size: int) -> None:
    x = torch.from_numpy(np.random.default_rng(4).uniform(0, 2, (1, 3, 20, 31)))
    mean = torch.nn.functional.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)
    torch.testing.assert_close(small._mean_around(x, size), mean)
    largest = torch.nn.functional.max_pool2d(x, size, 1, size // 2)
    assert torch.equal(small._around(x, size, torch.maximum), largest)


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
