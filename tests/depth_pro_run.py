"""Depth Pro in its full size, with random weights: one way to compute it. A program, run by test_depth_pro_full.

python tests/depth_pro_run.py make FOLDER       writes a checkpoint and, beside it, the same as a depth_pro.pt
python tests/depth_pro_run.py WAY DTYPE PATH FRAMES.npy OUT.npz [FOCAL_LENGTH_PX]
python tests/depth_pro_run.py gpu PATH          the network alone on a GPU, beside transformers' with SDPA

WAY is kdepth; or eager or sdpa, attention of transformers as it is documented. Prints seconds, CPU seconds and the peak
of memory. Memory is counted without the checkpoint's own pages, which are mapped from its file and which the kernel can
drop at any time; `peak_resident_GB` has them, too.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from kdepth.models.apple_weights import APPLE_CONFIG
from kdepth.models.base import Predict
from kdepth.models.load import load_model


def make(folder: Path) -> None:
    from tiny_checkpoints import PROCESSORS, apple_keys, save_checkpoint  # not while memory is measured
    from transformers import DepthProConfig

    config = DepthProConfig.from_dict(dict(APPLE_CONFIG))
    save_checkpoint(folder, config)
    processor = {**PROCESSORS["depth_pro"], "size": {"height": 1536, "width": 1536}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    port = load_file(folder / "model.safetensors")
    names = apple_keys(config.patch_model_config.num_hidden_layers)
    torch.save(
        {apple: torch.cat([port.pop(part) for part in parts]) for apple, parts in names.items()}, apple_of(folder)
    )
    assert not port


def apple_of(folder: Path) -> Path:
    return folder.with_name("depth_pro.pt")


def with_kdepth(path: Path, dtype: str, frames: NDArray[np.uint8], focal_length_px: float | None) -> tuple[Any, Any]:
    model = load_model(path, device="cpu", dtype=dtype)
    started = time.perf_counter(), time.process_time()
    found = model.estimate(frames, focal_length_px=focal_length_px)
    return (found.inverse_depth, found.focal_length_px), started


def with_transformers(path: Path, way: str, dtype: str, frames: NDArray[np.uint8]) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    kind = getattr(torch, dtype)
    processor = AutoImageProcessor.from_pretrained(path)
    network = AutoModelForDepthEstimation.from_pretrained(path, attn_implementation=way, dtype=kind).eval()
    for parameter in network.parameters():  # read from the file now, not while time is taken
        parameter.sum()
    started = time.perf_counter(), time.process_time()
    with torch.no_grad():
        outputs = network(**processor(images=list(frames), return_tensors="pt").to(kind))
    found = processor.post_process_depth_estimation(outputs, target_sizes=[frames.shape[1:3]] * len(frames))
    depth, focal = (torch.stack([one[key] for one in found]).float() for key in ("predicted_depth", "focal_length"))
    return (1 / depth.clamp(1e-4, 1e4).numpy(), focal.numpy()), started


def watch_memory(peaks: list[float]) -> None:
    """Keep the largest memory in GB, without pages of files."""
    while True:
        status = Path("/proc/self/status").read_text()
        anonymous, shared = (int(status.split(f"{name}:")[1].split()[0]) for name in ("RssAnon", "RssShmem"))
        peaks[0] = max(peaks[0], (anonymous + shared) * 1024 / 1e9)
        time.sleep(0.02)


def on_a_gpu(path: Path, *, num_frames: int = 4, turns: int = 8) -> dict[str, float]:
    """Milliseconds a frame, and errors against float32, of 4 frames that are on the GPU already, in float16."""
    from test_models import make_frames
    from transformers import AutoModelForDepthEstimation

    frames = torch.from_numpy(make_frames(num_frames, 360, 640)).permute(0, 3, 1, 2).cuda()
    pixels = (frames.float() - 127.5) / 127.5
    pixels = torch.nn.functional.interpolate(pixels, (1536, 1536), mode="bilinear", align_corners=False)
    stock, ours = {}, {}
    for dtype in (torch.float32, torch.float16):
        network = AutoModelForDepthEstimation.from_pretrained(path, attn_implementation="sdpa", dtype=dtype)
        stock[dtype] = network.eval().cuda()
    started = time.perf_counter()
    predict: Predict = load_model(path, device="cuda").predict
    ways = {
        "transformers": lambda: stock[torch.float16](pixels.half()).predicted_depth,
        "kdepth": lambda: predict(frames, None, None)[0],
    }
    with torch.inference_mode():
        ways["kdepth"]()
        torch.cuda.synchronize()
        result = {"load_and_compile_s": time.perf_counter() - started}
        exact = stock.pop(torch.float32)(pixels[:1]).predicted_depth
        rough = ways["transformers"]()[:1].float()
        result["transformers_median_error"] = float(((rough - exact).abs() / exact).median())
        for _ in range(turns):  # in turns, so that a slow moment is not one way's alone
            for name, way in ways.items():
                torch.cuda.synchronize()
                began = time.perf_counter()
                way()
                torch.cuda.synchronize()
                ours.setdefault(name, []).append((time.perf_counter() - began) / num_frames * 1000)
    return result | {f"{name}_ms": float(np.median(times)) for name, times in ours.items()}


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    elif sys.argv[1] == "gpu":
        print(json.dumps(on_a_gpu(Path(sys.argv[2]))))
    else:
        peaks = [0.0]
        threading.Thread(target=watch_memory, args=(peaks,), daemon=True).start()
        way, dtype, path, frames_path, out, *focal = sys.argv[1:]
        if way != "kdepth":  # which sets it when it is imported
            os.environ["THP_MEM_ALLOC_ENABLE"] = "0"
        frames = np.load(frames_path)
        if way == "kdepth":
            result, (wall, cpu) = with_kdepth(Path(path), dtype, frames, float(focal[0]) if focal else None)
        else:
            result, (wall, cpu) = with_transformers(Path(path), way, dtype, frames)
        row = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        np.savez(out, inverse_depth=result[0], focal_length_px=result[1])
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps(row | {"peak_GB": peaks[0], "peak_resident_GB": resident}))
