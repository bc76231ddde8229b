"""Depth Pro in its full size, with random weights: one way to compute it. A program, run by test_depth_pro_full.

python tests/depth_pro_run.py make FOLDER       writes a checkpoint and, beside it, the same as a depth_pro.pt
python tests/depth_pro_run.py WAY DTYPE PATH FRAMES.npy OUT.npz [FOCAL_LENGTH_PX]

WAY is kdepth; or eager or sdpa, attention of transformers as it is documented. Prints seconds and the peak of memory.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from kdepth.models.apple_weights import apple_config, apple_keys
from kdepth.models.load import load_model


def make(folder: Path) -> None:
    from tiny_checkpoints import PROCESSORS, save_checkpoint  # not while memory is measured

    config = apple_config()
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


def with_kdepth(path: Path, dtype: str, frames: NDArray[np.uint8], focal_length_px: float | None) -> tuple[Any, float]:
    model = load_model(path, device="cpu", dtype=dtype)
    started = time.perf_counter()
    found = model.estimate(frames, focal_length_px=focal_length_px)
    return (found.inverse_depth, found.focal_length_px), time.perf_counter() - started


def with_transformers(path: Path, way: str, dtype: str, frames: NDArray[np.uint8]) -> tuple[Any, float]:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    kind = getattr(torch, dtype)
    processor = AutoImageProcessor.from_pretrained(path)
    network = AutoModelForDepthEstimation.from_pretrained(path, attn_implementation=way, dtype=kind).eval()
    for parameter in network.parameters():  # read from the file now, not while time is taken
        parameter.sum()
    started = time.perf_counter()
    with torch.no_grad():
        outputs = network(**processor(images=list(frames), return_tensors="pt").to(kind))
    found = processor.post_process_depth_estimation(outputs, target_sizes=[frames.shape[1:3]] * len(frames))
    depth, focal = (torch.stack([one[key] for one in found]).float() for key in ("predicted_depth", "focal_length"))
    return (1 / depth.clamp(1e-4, 1e4).numpy(), focal.numpy()), time.perf_counter() - started


def watch_memory(peaks: list[float]) -> None:
    """Keep the largest memory in GB, without the checkpoint's own pages, which the kernel can drop at any time."""
    while True:
        status = Path("/proc/self/status").read_text()
        anonymous, shared = (int(status.split(f"{name}:")[1].split()[0]) for name in ("RssAnon", "RssShmem"))
        peaks[0] = max(peaks[0], (anonymous + shared) * 1024 / 1e9)
        time.sleep(0.02)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        peaks = [0.0]
        threading.Thread(target=watch_memory, args=(peaks,), daemon=True).start()
        way, dtype, path, frames_path, out, *focal = sys.argv[1:]
        if way != "kdepth":  # which sets it when it is imported
            os.environ["THP_MEM_ALLOC_ENABLE"] = "0"
        frames = np.load(frames_path)
        if way == "kdepth":
            result, seconds = with_kdepth(Path(path), dtype, frames, float(focal[0]) if focal else None)
        else:
            result, seconds = with_transformers(Path(path), way, dtype, frames)
        np.savez(out, inverse_depth=result[0], focal_length_px=result[1])
        print(json.dumps({"seconds": seconds, "peak_GB": peaks[0]}))
