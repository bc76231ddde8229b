"""The whole pipeline in one call; also as a program, for tests that kill it or give it another environment.

python tests/pipeline_run.py ROOT URL_LIST [FRAMES]
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

import kdepth
from kdepth.models.base import DepthKind
from kdepth.models.load import model_identity
from kdepth.pipeline import stages
from kdepth.storage import Root


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


def run_here(
    sources: pa.Table,
    root: str | Path,
    *,
    height: int = 360,
    model: str = "small",
    frames: str = "all",
    retry_failed: bool = False,
    keep_raw: bool = True,
) -> kdepth.RunReport:
    """As `run_pipeline`, but what Ray's workers would do is done here: the start of a run's workers takes 5 s."""
    todo = kdepth.pending(sources, root, height=height, model=model, frames=frames, retry_failed=retry_failed)
    is_note = pc.equal(todo["kind"], "annotation")
    options = {"allow_private_hosts": True, "keep": True, "at_once": 16, "rows_a_block": 1}
    rows = todo.filter(pc.invert(is_note))
    blocks = stages._download_block(rows, root=Root(root), annotations=todo.filter(is_note), **options)
    identity = model_identity(model)
    depth = stages._DepthStage(Root(root), model, frames, "auto", None, identity, 1, 1, {})
    done: list[pa.Table] = []
    for block in blocks:
        for transcoded in stages._transcode_block(block, root=Root(root), height=height):
            done += depth(transcoded)
    clips = ray.data.from_blocks(done)
    clips.context.set_config(stages.KEEP_RAW_KEY, keep_raw)
    return kdepth.write_lance(clips, root, sources=todo)


if __name__ == "__main__":
    kdepth.start_ray(num_cpus=2)
    print(run_pipeline(kdepth.read_sources(sys.argv[2]), sys.argv[1], frames=(*sys.argv[3:], "middle")[0]))
