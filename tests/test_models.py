"""Depth models against transformers' own processors, networks and post-processing."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import huggingface_hub
import numpy as np
import pytest
import tiny_checkpoints
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny_checkpoints import FAMILIES, apple_keys

import kdepth
from kdepth.errors import DepthError
from kdepth.models import depth_pro
from kdepth.models import transformers_models as families
from kdepth.models.apple_weights import APPLE_CONFIG, port_names
from kdepth.models.base import DepthModel
from kdepth.models.load import load_model, model_identity
from kdepth.notebook.comparison import agreement
from kdepth.samples import rendered_clips
from kdepth.schema import new_row


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from threads, and lose much when other processes want the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    for name, family in FAMILIES.items():
        tiny_checkpoints.save_checkpoint(root / name, family.make_config())
    return root


@pytest.fixture
def depth_pro_folder(checkpoints: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return shutil.copytree(checkpoints / "depth-pro", tmp_path / "depth-pro")


def load(checkpoints: Path, name: str, dtype: str = "float32") -> DepthModel:
    return load_model(checkpoints / name, device="cpu", dtype=dtype, depth_kind=FAMILIES[name].asked)


def make_frames(num_frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """Pictures with structure of all sizes, as films have, rather than noise."""
    rng = np.random.default_rng(height)
    frames = np.zeros((num_frames, height, width, 3), np.float32)
    for frame in frames:
        for cells in (2, 5, 12):
            grid = rng.uniform(0, 255, (cells, cells, 3)).astype(np.float32)
            frame += cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR) / 3
    return frames.round().astype(np.uint8)


def reference(
    folder: Path, frames: NDArray[np.uint8], kind: str
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """What transformers documents: processor, network, post-processing. Its own output, not inverted.

    But metres are kept within what the network gave: bicubic resizing overshoots.
    """
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    network = transformers.AutoModelForDepthEstimation.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        outputs = network(**processor(images=list(frames), return_tensors="pt"))
    sizes = [tuple(frames.shape[1:3])] * len(frames)
    argument = "source_sizes" if network.config.model_type == "zoedepth" else "target_sizes"
    results = processor.post_process_depth_estimation(outputs, **{argument: sizes})
    focal_lengths = [result.get("focal_length") for result in results]
    depth = torch.stack([result["predicted_depth"] for result in results]).numpy()
    if kind == "metric" and focal_lengths[0] is None:
        found = outputs.predicted_depth.flatten(1).numpy()
        depth = depth.clip(found.min(1)[:, None, None], found.max(1)[:, None, None])
    return depth, None if focal_lengths[0] is None else torch.stack(focal_lengths).numpy()


# --- against the reference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(90, 160), (160, 90), (123, 201), (256, 256)], ids=lambda size: f"{size[1]}x{size[0]}"
)
@pytest.mark.parametrize("name", FAMILIES)
def test_float32_equals_the_reference(name: str, size: tuple[int, int], checkpoints: Path) -> None:
    frames = make_frames(2, *size)
    model = load(checkpoints, name)
    estimate = model.estimate(frames)
    depth, focal_length_px = reference(checkpoints / name, frames, model.kind)
    expected = 1 / depth.clip(1e-4, 1e4) if model.kind == "metric" else depth.clip(0)
    assert model.kind == FAMILIES[name].kind
    assert estimate.inverse_depth.dtype == np.float32
    np.testing.assert_allclose(estimate.inverse_depth, expected, rtol=1e-4)
    # The comparison means something: the depth is not flat, and differs between the frames.
    assert expected.std() > 0.01 * expected.mean()
    assert np.abs(expected[0] - expected[1]).mean() > 0.001 * expected.mean()
    if focal_length_px is None:
        assert estimate.focal_length_px is None
    else:
        assert estimate.focal_length_px is not None
        np.testing.assert_allclose(estimate.focal_length_px, focal_length_px, rtol=1e-4)


@pytest.mark.parametrize(("name", "dtype"), [*((name, "bfloat16") for name in FAMILIES), ("depth-pro", "float16")])
def test_half_types_are_close_to_float32(name: str, dtype: str, checkpoints: Path) -> None:
    frames = make_frames(2, 90, 160)
    exact = load(checkpoints, name).estimate(frames).inverse_depth
    rough = load(checkpoints, name, dtype).estimate(frames).inverse_depth
    error = np.abs(rough - exact) / exact
    assert np.median(error) <= 0.01
    assert np.quantile(error, 0.99) <= 0.05


@pytest.mark.parametrize("name", FAMILIES)
def test_half_types_show_no_bands(name: str, checkpoints: Path) -> None:
    """Smooth depth has as many levels as half floats can tell apart, not the few of bfloat16."""
    ramp = np.linspace(0, 255, 320, dtype=np.float32)
    frames = np.broadcast_to(ramp[None, None, :, None], (1, 180, 320, 3)).astype(np.uint8)
    exact = load(checkpoints, name).estimate(frames).inverse_depth.astype(np.float16)
    rough = load(checkpoints, name, "bfloat16").estimate(frames).inverse_depth.astype(np.float16)
    assert len(np.unique(rough)) >= 0.8 * len(np.unique(exact))


# --- conventions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.last_layer])
def test_near_is_large_and_metres_are_metres(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    tiny_checkpoints.save_constant_checkpoint(tmp_path, family)
    model = load_model(tmp_path, device="cpu", dtype="float32", depth_kind=family.asked)
    assert model.kind == family.kind
    np.testing.assert_allclose(model.estimate(make_frames(1, 90, 160)).inverse_depth, family.inverse_depth, rtol=1e-5)


def test_dpt_does_not_say_what_it_gives(checkpoints: Path) -> None:
    with pytest.raises(DepthError, match=r"depth_kind='relative'.*depth_kind='metric'"):
        load_model(checkpoints / "dpt", device="cpu")


def test_the_driver_is_told_what_a_worker_would_be(checkpoints: Path) -> None:
    with pytest.raises(DepthError, match="depth_kind='relative'"):
        model_identity(checkpoints / "dpt")
    with pytest.raises(ValueError, match="says 'relative'"):
        model_identity(checkpoints / "depth-anything", depth_kind="metric")
    assert model_identity(checkpoints / "dpt", depth_kind="relative").startswith("dpt@sha256:")


def test_frames_that_a_network_can_not_take_are_an_error_of_the_clip(checkpoints: Path) -> None:
    with pytest.raises(DepthError, match="as small as 300x20"):
        load_model("small", device="cpu").estimate(make_frames(1, 20, 300))
    with pytest.raises(DepthError, match="depth-anything can't take frames of 4096x20"):
        load(checkpoints, "depth-anything").estimate(make_frames(1, 20, 4096))


def test_infinity_is_no_depth() -> None:
    model = DepthModel(
        lambda frames, focal, memory: (torch.full((1, 8, 8), torch.inf), None, None),
        kind="relative",
        name="broken",
        revision="1",
        batch_size=1,
    )
    with pytest.raises(DepthError, match="not finite"):
        model.estimate(np.zeros((1, 8, 8, 3), np.uint8))


def test_depth_kind_must_not_contradict_the_configuration(checkpoints: Path) -> None:
    with pytest.raises(ValueError, match="says 'relative'"):
        load_model(checkpoints / "depth-anything", device="cpu", depth_kind="metric")
    with pytest.raises(ValueError, match="depth_kind='far'"):
        load_model(checkpoints / "dpt", device="cpu", depth_kind="far")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "prompt_depth_anything"}, "prompt"),
        ({"model_type": "chmv2"}, "height of trees"),
        ({"model_type": "sam"}, "'sam' can't be used: kdepth does not know.*depth_anything"),
        ({"model_type": ["dpt"]}, r"dpt.*depth_anything"),
        ({"model_type": "depth_anything", "depth_estimation_type": "disparity"}, "disparity"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "None"),
    ],
)
def test_unknown_families_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(DepthError, match=message):
        load_model(tmp_path, device="cpu")
    with pytest.raises(DepthError, match=message):
        model_identity(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"image_processor_type": "BitImageProcessor"}', "BitImageProcessor is not for depth"),
        ('{"image_processor_type": "NoSuchProcessor"}', "can't be used"),
        ('{"image_processor_type": 5}', "can't be used"),
        ('{"auto_map": {"AutoImageProcessor": "code.Mine"}, "image_processor_type": "Mine"}', "can't be used"),
        ("[]", "not a JSON object"),
        ("{", "can't be read"),
        ('{"image_processor_type": "DPTImageProcessor", "do_center_crop": true}', "do_center_crop=True"),
        ('{"image_processor_type": "DPTImageProcessor", "size": {"shortest_edge": 56}}', "can't be used"),
        ('{"image_processor_type": "DPTImageProcessor", "size": "large"}', "can't be used"),
        ('{"image_processor_type": "DPTImageProcessor", "size": {"height": 0, "width": 0}}', "can't be used"),
        ('{"image_processor_type": "DPTImageProcessor", "image_mean": "grey"}', "can't be used"),
        ('{"image_processor_type": "DPTImageProcessor", "rescale_factor": [1]}', "can't be used"),
        ('{"image_processor_type": "DPTImageProcessor", "resample": "sharp"}', "can't be used"),
    ],
)
def test_a_processor_that_can_t_be_used(content: str, says: str, checkpoints: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints / "depth-anything", tmp_path / "folder")
    (folder / "code.py").write_text("raise SystemExit('it was run')")
    (folder / "preprocessor_config.json").write_text(content)
    with pytest.raises(DepthError, match=says):
        load_model(folder, device="cpu")


def test_without_a_processors_file_the_input_is_unknown(checkpoints: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints / "glpn", tmp_path / "folder")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(DepthError, match=r"preprocessor_config\.json can't be read"):
        load_model(folder, device="cpu")


# --- Depth Pro --------------------------------------------------------------------------------------------------------


def test_a_known_focal_length_replaces_the_estimated_one(checkpoints: Path, depth_pro_folder: Path) -> None:
    frames = make_frames(2, 90, 160)
    estimated = load(checkpoints, "depth-pro").estimate(frames)
    assert estimated.focal_length_px is not None
    weights = load_file(depth_pro_folder / "model.safetensors")
    weights["fov_model.head.layers.4.bias"][:] = torch.nan  # whoever asks this network learns nothing
    save_file(weights, depth_pro_folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(depth_pro_folder, device="cpu", dtype="float32")
    with pytest.raises(DepthError, match="not finite"):
        model.estimate(frames)
    given = model.estimate(frames, focal_length_px=100.0)
    assert given.focal_length_px is not None
    np.testing.assert_array_equal(given.focal_length_px, [100, 100])
    # Inverse depth is canonical inverse depth x width / focal length.
    scale = estimated.focal_length_px[:, None, None] / 100
    np.testing.assert_allclose(given.inverse_depth, estimated.inverse_depth * scale, rtol=1e-5)


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_ways_to_a_product_agree(
    is_there: bool, dtype: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without oneDNN products stay as they are."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: is_there)
    frames = make_frames(1, 160, 90)
    depth, _ = reference(checkpoints / "depth-pro", frames, "metric")
    found = load(checkpoints, "depth-pro", dtype).estimate(frames).inverse_depth
    np.testing.assert_allclose(found, 1 / depth.clip(1e-4, 1e4), rtol=1e-4 if dtype == "float32" else 0.05)


def test_depth_pro_whose_features_are_narrower_than_its_decoder(tmp_path: Path) -> None:
    config = tiny_checkpoints.depth_pro_config(scaled_images_feature_dims=[32, 8, 16])
    tiny_checkpoints.save_checkpoint(tmp_path, config)
    frames = make_frames(1, 90, 160)
    depth, _ = reference(tmp_path, frames, "metric")
    found = load_model(tmp_path, device="cpu", dtype="float32").estimate(frames).inverse_depth
    np.testing.assert_allclose(found, 1 / depth.clip(1e-4, 1e4), rtol=1e-4)


def test_depth_pro_merges_patches_without_their_borders(tmp_path: Path) -> None:
    # As in the full network; with the other small configuration nothing is cut off.
    config = tiny_checkpoints.depth_pro_config(patch_size=128, layers=3, merge_padding_value=1)
    tiny_checkpoints.save_checkpoint(tmp_path, config)
    processor = tiny_checkpoints.PROCESSORS["depth_pro"] | {"size": {"height": 512, "width": 512}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    frames = make_frames(1, 90, 160)
    depth, _ = reference(tmp_path, frames, "metric")
    found = load_model(tmp_path, device="cpu", dtype="float32").estimate(frames).inverse_depth
    np.testing.assert_allclose(found, 1 / depth.clip(1e-4, 1e4), rtol=1e-4)


def test_focal_length_of_known_fields_of_view() -> None:
    focal_length_px = depth_pro.focal_length_from_fov(torch.tensor([90.0, 60.0]), 640)
    np.testing.assert_allclose(focal_length_px.numpy(), [320, 320 * 3**0.5], rtol=1e-6)


def test_without_a_field_of_view_network_the_focal_length_must_be_given(tmp_path: Path) -> None:
    tiny_checkpoints.save_checkpoint(tmp_path, tiny_checkpoints.depth_pro_config(use_fov_model=False))
    model = load_model(tmp_path, device="cpu", dtype="float32")
    frames = make_frames(1, 90, 160)
    with pytest.raises(DepthError, match="give focal_length_px"):
        model.estimate(frames)
    assert model.estimate(frames, focal_length_px=120).inverse_depth.min() > 0


@pytest.fixture
def apple_file(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny checkpoint's weights under Apple's names."""
    config = tiny_checkpoints.depth_pro_config()
    monkeypatch.setattr(depth_pro, "APPLE_CONFIG", config.to_dict())
    port = load_file(checkpoints / "depth-pro" / "model.safetensors")
    weights = {
        apple: torch.cat([port.pop(name) for name in names])
        for apple, names in apple_keys(config.patch_model_config.num_hidden_layers).items()
    }
    assert not port, "every weight of the port has its place in Apple's file"
    torch.save(weights, tmp_path / "depth_pro.pt")
    return tmp_path / "depth_pro.pt"


def test_apples_file_gives_what_the_port_gives(apple_file: Path, checkpoints: Path) -> None:
    frames = make_frames(1, 123, 201)
    model = load_model(apple_file, device="cpu", dtype="float32")
    expected = load(checkpoints, "depth-pro").estimate(frames)
    estimate = model.estimate(frames)
    np.testing.assert_allclose(estimate.inverse_depth, expected.inverse_depth, rtol=1e-6)
    np.testing.assert_allclose(estimate.focal_length_px, expected.focal_length_px, rtol=1e-6)
    digest = hashlib.sha256(apple_file.read_bytes()).hexdigest()
    assert model.identity == model_identity(apple_file) == f"depth_pro.pt@sha256:{digest[:12]}"


def test_apples_names() -> None:
    keys = apple_keys(24)
    assert {name: port_names(name) for name in keys} == keys
    names = [name for ports in keys.values() for name in ports]
    assert len(keys) == 1119
    assert len(names) == len(set(names)) == 1407
    # From Apple's source: scales run from fine to coarse there, from coarse to fine in the port.
    neck = "depth_pro.neck.feature_upsample."
    assert keys["encoder.upsample_latent0.3.weight"] == [neck + "intermediate.1.layers.3.weight"]
    assert keys["encoder.upsample0.1.weight"] == [neck + "scaled_images.2.layers.1.weight"]
    assert keys["decoder.convs.4.weight"] == ["depth_pro.neck.feature_projection.projections.0.weight"]
    assert keys["decoder.fusions.4.resnet2.residual.3.bias"] == [
        "fusion_stage.intermediate.0.residual_layer2.convolution2.bias"
    ]
    assert keys["fov.encoder.0.blocks.23.attn.qkv.weight"] == [
        f"fov_model.fov_encoder.model.encoder.layer.23.attention.attention.{part}.weight"
        for part in ("query", "key", "value")
    ]


def test_the_network_of_apples_file_has_its_size() -> None:
    with torch.device("meta"):
        network = transformers.AutoModelForDepthEstimation.from_config(
            transformers.DepthProConfig.from_dict(dict(APPLE_CONFIG))
        )
    assert len(network.state_dict()) == 1407
    assert sum(parameter.numel() for parameter in network.parameters()) == 951_991_330


@pytest.mark.parametrize(
    ("change", "message"),
    [("lacks", r"lacks .*head\.layers\.4\.bias"), ("has", r"has unknown .*head\.layers\.5\.bias")],
)
def test_apples_file_must_have_every_key_and_no_other(apple_file: Path, change: str, message: str) -> None:
    weights = torch.load(apple_file, weights_only=True)
    if change == "lacks":
        del weights["head.4.bias"]
    else:
        weights["head.5.bias"] = torch.zeros(1)
    torch.save(weights, apple_file)
    with pytest.raises(DepthError, match=message):
        load_model(apple_file, device="cpu")


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["KDEPTH_TEST_HARM"],)


def test_a_pickle_with_code_is_not_run(apple_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDEPTH_TEST_HARM", str(tmp_path / "harm"))
    torch.save({"head.4.bias": _Harmful()}, apple_file)
    with pytest.raises(DepthError, match=r"depth_pro\.pt can't be read"):
        load_model(apple_file, device="cpu")
    apple_file.write_bytes(pickle.dumps(_Harmful()))
    with pytest.raises(DepthError, match=r"depth_pro\.pt can't be read"):
        load_model(apple_file, device="cpu")
    assert not (tmp_path / "harm").exists()


# --- frames -----------------------------------------------------------------------------------------------------------


def test_batches_don_t_change_the_depth(checkpoints: Path) -> None:
    frames = make_frames(5, 90, 160)
    model = load(checkpoints, "depth-anything")
    model.batch_size = 2
    together = model.estimate(frames).inverse_depth
    alone = np.concatenate([model.estimate(frames[i : i + 1]).inverse_depth for i in range(5)])
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_any_layout_of_frames(checkpoints: Path) -> None:
    frames = make_frames(2, 90, 160)
    model = load(checkpoints, "depth-anything")
    expected = model.estimate(frames).inverse_depth
    read_only = frames.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(model.estimate(read_only).inverse_depth, expected)
    reversed_channels = np.ascontiguousarray(frames[..., ::-1])[..., ::-1]
    np.testing.assert_array_equal(model.estimate(reversed_channels).inverse_depth, expected)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((90, 160, 3), np.uint8),
        np.zeros((1, 90, 160, 4), np.uint8),
        np.zeros((0, 90, 160, 3), np.uint8),
        np.zeros((1, 90, 160, 3), np.float32),
    ],
)
def test_other_arrays_are_refused(frames: Any, checkpoints: Path) -> None:
    with pytest.raises(ValueError, match=r"frames must be uint8 \(N, H, W, 3\)"):
        load(checkpoints, "depth-anything").estimate(frames)


@pytest.mark.parametrize("what", [[make_frames(1, 90, 160)[0]], torch.zeros(1, 90, 160, 3, dtype=torch.uint8)])
def test_what_is_no_array_is_refused(what: Any) -> None:
    with pytest.raises(ValueError, match=f"must be a NumPy array.* not a {type(what).__name__}"):
        load_model("small").estimate(what)


@pytest.mark.parametrize("name", ["depth-anything-metric", "zoedepth", "glpn", "dpt-metric"])
def test_silhouettes_stay_within_the_range_of_the_network(
    name: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Step(torch.nn.Module):
        """Something 4 m away before a background of 70 m, in one frame; the other is all at 9 m."""

        config = transformers.AutoConfig.from_pretrained(checkpoints / name)

        def forward(self, pixel_values: torch.Tensor) -> Any:
            metres = torch.full((2, *pixel_values.shape[2:]), 70.0)
            metres[0, 20:, 20:] = 4.0
            metres[1] = 9.0
            return SimpleNamespace(predicted_depth=metres)

    monkeypatch.setattr(families, "load_network", lambda *_: Step())
    inverse = load(checkpoints, name).estimate(make_frames(2, 360, 640)).inverse_depth
    np.testing.assert_allclose([inverse[0].min(), inverse[0].max()], [1 / 70, 1 / 4], rtol=1e-5)
    np.testing.assert_allclose(inverse[1], 1 / 9, rtol=1e-5)


OWN = """
import kdepth
import torch

def load(device):
    def predict(frames, focal_length_px, before):
        assert (frames.dtype, frames.device.type) == (torch.uint8, device)
        return frames[:, 0].float(), None, None

    return kdepth.DepthModel(predict, kind="relative", batch_size=2, device=device)
"""


def test_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    model, frames = load_model("mine.py", device="cpu"), make_frames(5, 32, 48)
    np.testing.assert_array_equal(model.estimate(frames).inverse_depth, frames[..., 0])
    digest = hashlib.sha256(OWN.encode()).hexdigest()[:12]
    assert model.identity == model_identity(tmp_path / "mine.py") == f"mine.py@sha256:{digest}"
    with pytest.raises(ValueError, match="says 'relative'"):
        load_model("mine.py", depth_kind="metric")
    for text, says in (("", "no function load"), ("def load(device): return device", "returned a str")):
        (tmp_path / "other.py").write_text(text)
        with pytest.raises(DepthError, match=says):
            load_model("other.py")


def test_what_a_network_of_ones_own_gives_is_looked_at(tmp_path: Path) -> None:
    frames = make_frames(2, 32, 48)
    for gives, says in (
        ("frames[:, :1].float()", r"gave inverse depth \(2, 1, 32, 48\) of frames \(2, 32, 48\)"),
        ("frames[:1, 0].float()", r"gave inverse depth \(1, 32, 48\)"),
        ("frames[:, 0].float() * float('nan')", "not finite"),
    ):
        (tmp_path / "mine.py").write_text(OWN.replace("frames[:, 0].float()", gives))
        with pytest.raises(DepthError, match=says):
            load_model(tmp_path / "mine.py", device="cpu").estimate(frames)
    (tmp_path / "mine.py").write_text(OWN.replace("frames[:, 0].float()", "frames[:, 0].bfloat16()"))
    assert load_model(tmp_path / "mine.py", device="cpu").estimate(frames).inverse_depth.dtype == np.float32
    for wrong in ({"kind": "disparity"}, {"kind": None}, {"kind": "relative", "batch_size": 0}):
        with pytest.raises(ValueError, match=list(wrong)[-1]):
            DepthModel(lambda *_: None, **wrong)  # type: ignore[arg-type, return-value]
    own = "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass A:\n    b: int\n"
    (tmp_path / "mine.py").write_text(own + OWN)
    assert load_model(tmp_path / "mine.py", device="cpu").name == "mine.py"
    (tmp_path / "mine.py").write_text("import not_there")
    with pytest.raises(ModuleNotFoundError):
        model_identity(tmp_path / "mine.py")


def test_options_that_can_t_be(checkpoints: Path) -> None:
    with pytest.raises(ValueError, match="dtype='int8'"):
        load_model(checkpoints / "glpn", dtype="int8")
    with pytest.raises(ValueError, match="device='gpu' is not there: this machine has cpu"):
        load_model("small", device="gpu")
    with pytest.raises(ValueError, match="threads=0"):
        load_model("small", threads=0)
    with pytest.raises(ValueError, match="focal_length_px=-1"):
        load(checkpoints, "depth-pro").estimate(make_frames(1, 90, 160), focal_length_px=-1)


def test_depth_that_is_not_finite_is_an_error(depth_pro_folder: Path) -> None:
    file = depth_pro_folder / "model.safetensors"
    weights = load_file(file)
    weights["head.layers.0.bias"][0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(DepthError, match="not finite"):
        load_model(depth_pro_folder, device="cpu").estimate(make_frames(1, 90, 160))


# --- where weights come from ------------------------------------------------------------------------------------------


def test_identity_of_a_folder(checkpoints: Path, depth_pro_folder: Path) -> None:
    identity = load(checkpoints, "depth-pro").identity
    assert identity == model_identity(checkpoints / "depth-pro") == model_identity(str(depth_pro_folder))
    files = ("model.safetensors", "config.json", "preprocessor_config.json")
    digest = hashlib.sha256(b"".join((depth_pro_folder / file).read_bytes() for file in files)).hexdigest()
    assert identity == f"depth-pro@sha256:{digest[:12]}"
    # Other weights, another identity: a resumed run does its depth again.
    weights = load_file(depth_pro_folder / "model.safetensors")
    weights["head.layers.0.bias"] += 1
    save_file(weights, depth_pro_folder / "model.safetensors", metadata={"format": "pt"})
    assert model_identity(depth_pro_folder) != identity


def test_missing_weights_are_named(depth_pro_folder: Path) -> None:
    file = depth_pro_folder / "model.safetensors"
    weights = load_file(file)
    del weights["head.layers.2.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(DepthError, match=r"lacks weights of its network, 1: head\.layers\.2\.bias"):
        load_model(depth_pro_folder, device="cpu")


def test_damaged_folders(depth_pro_folder: Path) -> None:
    (depth_pro_folder / "model.safetensors").write_bytes(b"\x10" * 100)
    with pytest.raises(DepthError, match="can't be read as plain weights"):
        load_model(depth_pro_folder, device="cpu")
    (depth_pro_folder / "config.json").write_text("{")
    with pytest.raises(DepthError, match=r"config\.json can't be read"):
        model_identity(depth_pro_folder)
    (depth_pro_folder / "model.safetensors").unlink()
    with pytest.raises(DepthError, match="holds no weights"):
        model_identity(depth_pro_folder)


def test_weights_in_parts(checkpoints: Path, tmp_path: Path) -> None:
    whole = load_file(checkpoints / "depth-anything" / "model.safetensors")
    folder = shutil.copytree(checkpoints / "depth-anything", tmp_path / "folder")
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    for number, some in enumerate((names[::2], names[1::2])):
        save_file({name: whole[name] for name in some}, folder / f"part{number}.safetensors", metadata={"format": "pt"})
    index = {name: f"part{number % 2}.safetensors" for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    frames, identity = make_frames(1, 90, 160), model_identity(folder)
    expected = load(checkpoints, "depth-anything").estimate(frames).inverse_depth
    found = load_model(folder, device="cpu", dtype="float32").estimate(frames).inverse_depth
    np.testing.assert_array_equal(found, expected)
    part = load_file(folder / "part1.safetensors")
    save_file({name: values * 2 for name, values in part.items()}, folder / "part1.safetensors")
    assert model_identity(folder) != identity
    (folder / "part1.safetensors").unlink()
    with pytest.raises(DepthError, match=r"part1\.safetensors"):
        model_identity(folder)


@pytest.mark.parametrize("part", ["../outside.safetensors", "{root}/outside.safetensors", "..", "", 5, None])
def test_an_index_names_files_of_its_folder_only(part: Any, checkpoints: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints / "depth-anything", tmp_path / "folder")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    part = part.format(root=tmp_path) if isinstance(part, str) else part
    for content in ({"weight_map": {"a": part}}, {"weight_map": [part]}, {}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        for use in (model_identity, load_model):
            with pytest.raises(DepthError, match="names files outside its folder, or none"):
                use(folder)


@pytest.mark.parametrize("family", ["depth-anything", "zoedepth", "dpt", "tipsv2-dpt", "depth-pro"])
@pytest.mark.parametrize(
    "part",
    [
        {"backbone": "someone/elsewhere"},
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18"}},
        {"image_model_config": {"model_type": "timm_wrapper", "architecture": "hf-hub:someone/elsewhere"}},
        {"attn_implementation": "someone/kernels"},
        {"quantization_config": {"quant_method": "someones"}},
    ],
    ids=lambda part: next(iter(part)),
)
def test_no_part_comes_from_elsewhere(family: str, part: dict[str, Any], checkpoints: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints / family, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    config.pop("backbone_config", None)
    (folder / "config.json").write_text(json.dumps(config | part))
    for use in (model_identity, load_model):
        with pytest.raises(DepthError, match="asks for a part from elsewhere"):
            use(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone_config": 5},
        {"backbone_config": {"model_type": ["dinov2"]}},
        {"backbone_config": {"model_type": "no_such"}},
        {"backbone_config": {"model_type": "dinov2", "hidden_size": "wide"}},
        {"neck_hidden_sizes": "8"},
        {"neck_hidden_sizes": [8, 8]},
        {"fusion_hidden_size": None},
        {"fusion_hidden_size": 0},
        {"fusion_hidden_size": -1},
        {"reassemble_factors": {}},
        {"head_hidden_size": 1e30},
        {"patch_size": "x"},
    ],
    ids=str,
)
def test_strange_configurations_are_errors_of_the_model(
    change: dict[str, Any], checkpoints: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoints / "depth-anything", tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(DepthError):
        load_model(folder, device="cpu").estimate(make_frames(1, 90, 160))


def test_weights_that_are_no_weights(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDEPTH_TEST_HARM", str(tmp_path / "harm"))
    folder = shutil.copytree(checkpoints / "depth-anything", tmp_path / "folder")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(weights, file)
    expected = load(checkpoints, "depth-anything").estimate(make_frames(1, 90, 160)).inverse_depth
    found = load_model(folder, device="cpu", dtype="float32").estimate(make_frames(1, 90, 160)).inverse_depth
    np.testing.assert_array_equal(found, expected)
    for content in (pickle.dumps(_Harmful(), 2), b"", b"\x80\x02" * 9, pickle.dumps([1, 2], 2)):
        file.write_bytes(content)
        with pytest.raises(DepthError, match=r"pytorch_model\.bin can't be read as plain weights"):
            load_model(folder, device="cpu")
    for content in ([1, 2], {"a": 1}, {1: torch.zeros(1)}):
        torch.save(content, file)
        with pytest.raises(DepthError):
            load_model(folder, device="cpu")
    assert not (tmp_path / "harm").exists()


def test_a_folder_does_not_take_the_place_of_a_built_in_model(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("small", "depth-pro"):
        shutil.copytree(checkpoints / "glpn", tmp_path / name)
        assert model_identity(f"./{name}") == model_identity(Path(name)) == load_model(Path(name)).identity
        assert model_identity(f"./{name}").startswith(f"{name}@sha256:")
    assert model_identity("small").startswith("small@sha256:176416514ec5")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DepthError, match=r"the weights of apple/DepthPro-hf can't be had"):
        model_identity("depth-pro")


@pytest.mark.parametrize("name", ["nonsense", "a/b/c", "/no/such/folder", Path("no/such")])
def test_names_that_can_t_be(name: str | Path) -> None:
    with pytest.raises(DepthError, match="no such file or folder"):
        model_identity(name)


def test_a_file_that_is_not_apples(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.touch()
    with pytest.raises(DepthError, match=r"Apple's depth_pro\.pt"):
        load_model(file, device="cpu")


def test_the_hubs_cache_is_used_without_asking_the_hub(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny-depth"
    shutil.copytree(checkpoints / "depth-anything", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    model = load_model("someone/tiny-depth", device="cpu")
    assert model.identity == model_identity("someone/tiny-depth") == f"someone/tiny-depth@{commit}"
    assert model_identity("someone/tiny-depth", revision=commit) == model.identity
    # What another program left there without the processor's file is not taken for whole: the hub is asked.
    (repository / "snapshots" / commit / "preprocessor_config.json").unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DepthError, match="the weights of someone/tiny-depth can't be had"):
        model_identity("someone/tiny-depth")


@pytest.mark.parametrize("offline", [True, False])
def test_weights_that_can_t_be_had(offline: bool, tmp_path: Path) -> None:
    """In a process of its own, because the hub's client reads its environment once."""
    code = "import kdepth.models.load as m\ntry: m.model_identity('depth-pro')\nexcept m.DepthError as exc: print(exc)"
    # Nobody listens on port 9. With its usual retries the hub's client would take half a minute.
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment["HF_HUB_OFFLINE"] = "1" if offline else "0"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=25)
    assert run.returncode == 0, run.stderr
    assert "the weights of apple/DepthPro-hf can't be had" in run.stdout
    assert ("HF_HUB_OFFLINE is set" in run.stdout) == offline
    assert str(tmp_path) in run.stdout
    assert "hf download apple/DepthPro-hf --local-dir DepthPro-hf" in run.stdout
    assert "/path/to/depth_pro.pt" in run.stdout


# --- the embedded model -----------------------------------------------------------------------------------------------


def test_small() -> None:
    from kdepth.models.small import WEIGHTS_SHA256, load_small

    model = load_model("small", device="cpu")
    assert model.kind == "relative"
    assert model.identity == model_identity("small") == f"small@sha256:{WEIGHTS_SHA256[:12]}"
    frames = make_frames(2, 90, 160)
    frames[1] = frames[0] // 2 * 2  # nearly the same: what a clip that stands still looks like
    estimate = model.estimate(frames)
    assert estimate.focal_length_px is None
    expected = load_small(device="cpu").estimate(torch.from_numpy(frames)).numpy()
    np.testing.assert_array_equal(estimate.inverse_depth, expected)
    first = model.estimate(frames[:1])
    np.testing.assert_array_equal(model.estimate(frames[1:], after=first).inverse_depth, expected[1:])
    assert (model.estimate(frames[1:]).inverse_depth != expected[1:]).any()  # a clip of its own


def test_an_identity_costs_no_import_of_torch(checkpoints: Path) -> None:
    code = """if True:
        import sys
        from kdepth.models.load import model_identity
        for name in sys.argv[1:]:
            model_identity(name)
        print({"torch", "transformers"} & {*sys.modules})"""
    command = [sys.executable, "-c", code, "small", str(checkpoints / "glpn")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "set()", run.stderr


# --- agreement of models ----------------------------------------------------------------------------------------------


def test_agreement_ignores_scale_and_shift() -> None:
    reference = np.random.default_rng(0).uniform(0.1, 2, (40, 50)).astype(np.float32)
    found = agreement(3 * reference - 0.2, reference)
    assert found.abs_rel == pytest.approx(0, abs=1e-5)
    assert (found.delta1, found.order) == (1, 1)
    assert agreement(1 / reference, reference).order == 0
    # What is a thousand times as far as the near things does not count, nor what is infinitely far.
    reference[0, :3] = 0, 1e-4, np.nan
    assert agreement(reference, reference).num_pixels == reference.size - 3
    with pytest.raises(ValueError, match="only 0 pixels"):
        agreement(reference, np.zeros_like(reference))


def test_compare_models(checkpoints: Path) -> None:
    clip_id, path = next(iter(rendered_clips().items()))
    sample_clip = kdepth.Clip(path.parent, new_row(clip_id=clip_id, status="ok", video_path=path.name, num_frames=72))
    found = kdepth.compare_models(sample_clip, ["small", checkpoints / "depth-pro", load(checkpoints, "glpn")], index=3)
    small, depth_pro, glpn = found.inverse_depth
    assert small.startswith("small@")
    assert depth_pro.startswith("depth-pro@")
    np.testing.assert_array_equal(found.rgb, sample_clip.frame(3))
    np.testing.assert_array_equal(
        found.inverse_depth[small], load_model("small").estimate(found.rgb[None]).inverse_depth[0]
    )
    expected = agreement(found.inverse_depth[glpn], found.inverse_depth[small])
    assert found.agreement == {depth_pro: found.agreement[depth_pro], glpn: expected}
    assert f"{glpn}: AbsRel {expected.abs_rel:.3f}, delta1" in str(found)
    page = found._repr_html_()
    assert page.count("<img") == 1
    assert f"3. {glpn}" in page
    with pytest.raises(ValueError, match="at least two"):
        kdepth.compare_models(sample_clip, ["small"])
    with pytest.raises(ValueError, match="twice"):
        kdepth.compare_models(sample_clip, ["small", "small"])
    with pytest.raises(IndexError, match="frame 999"):
        kdepth.compare_models(sample_clip, ["small", "small"], index=999)
