"""The whole pipeline in one call; also as a program, for tests that kill it or give it another environment.

python tests/pipeline_run.py ROOT URL_LIST [FRAMES]
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

import kdepth
from kdepth.models.base import DepthKind


def run_pipeline(
    sources: pa.Table,
    root: str | Path,
    *,
    height: int = 360,
    model: str = "small",
    frames: str = "all",
    retry_failed: bool = False,
    keep_raw: bool = True,
    depth_kind: DepthKind | None = None,
    concurrency: int | None = 1,
) -> kdepth.RunReport:
    """What the notebook does, in one call; by default with one depth actor: more cost more than they save."""
    depth = {"model": model, "frames": frames, "depth_kind": depth_kind}
    todo = kdepth.pending(sources, root, height=height, retry_failed=retry_failed, **depth)
    clips = kdepth.download(todo, root, allow_private_hosts=True)
    clips = kdepth.transcode(clips, root, height=height, keep_raw=keep_raw)
    clips = kdepth.estimate_depth(clips, root, **depth, concurrency=concurrency)
    return kdepth.write_lance(clips, root, sources=todo)


if __name__ == "__main__":
    kdepth.start_ray(num_cpus=2)
    print(run_pipeline(kdepth.read_sources(sys.argv[2]), sys.argv[1], frames=(*sys.argv[3:], "middle")[0]))
