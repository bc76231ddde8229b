"""`fetch_files` in a script and in a real kernel, where an event loop runs already."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbclient
import nbformat
import pytest
from http_server import Fault, Server, serve

import kdepth
from kdepth.errors import DownloadTooLargeError, HttpStatusError

CLIPS = {f"clip {i}.mp4": b"\0\0\0\x18ftypmp42" + random.Random(i).randbytes(20_000 * (i + 1)) for i in range(6)}
NAMES = list(CLIPS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    for name, data in CLIPS.items():
        (tmp_path / "www" / name).write_bytes(data)
    with serve(tmp_path / "www") as server:
        yield server


def test_files_and_errors_come_in_the_order_of_the_urls(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fail_next(NAMES[2], Fault(404))
    server.fail_next(NAMES[3], Fault(503), Fault(reset_at=0.5))
    urls = [server.url(name) for name in [*NAMES, NAMES[0]]] + ["ftp://h/a.mp4", "http://[", ""]
    found = kdepth.fetch_files(
        urls, tmp_path / "out", allow_private_hosts=True, at_once=3, backoff_seconds=0.001, max_bytes=110_000
    )
    assert [type(item).__name__ for item in found] == [
        *("Fetched", "Fetched", "HttpStatusError", "Fetched", "Fetched", "DownloadTooLargeError", "Fetched"),
        *("RefusedAddressError", "RefusedAddressError", "RefusedAddressError"),
    ]
    for item, data in zip(found, CLIPS.values(), strict=False):
        if isinstance(item, kdepth.Fetched):
            assert item.path.read_bytes() == data
    assert isinstance(found[2], HttpStatusError)
    assert isinstance(found[5], DownloadTooLargeError)
    assert found[6] is found[0]
    assert isinstance(found[3], kdepth.Fetched)
    assert found[3].attempts == 3
    assert len(server.of(NAMES[0])) == 1
    assert server.max_concurrent <= 3
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert "9/9" in capsys.readouterr().err


def test_what_can_not_be_is_a_mistake(tmp_path: Path) -> None:
    assert kdepth.fetch_files([], tmp_path, progress=False) == []
    for options, mistake in (({"attempts": 0}, ValueError), ({"at_once": 0}, ValueError), ({"retries": 1}, TypeError)):
        with pytest.raises(mistake):
            kdepth.fetch_files(["https://h/a.mp4"], tmp_path, progress=False, **options)


CODE = """
import kdepth
found = kdepth.fetch_files({urls!r}, {folder!r}, allow_private_hosts=True, attempts=1)
print([getattr(item, "num_bytes", str(item)) for item in found])
"""


@pytest.mark.parametrize("where", ["script", "kernel"])
def test_in_a_script_and_in_a_kernel(server: Server, tmp_path: Path, where: str) -> None:
    urls = [server.url(name) for name in NAMES] + [server.url("none.mp4")]
    code = CODE.format(urls=urls, folder=str(tmp_path / "out"))
    if where == "script":
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        printed, errors = done.stdout, done.stderr
    else:
        # Before and after it the kernel's own loop is what it was.
        cells = [f"{code}\nimport asyncio", "await asyncio.sleep(0)", code, f"await kdepth.fetch({urls[0]!r}, 'x')"]
        cells[3] = f"(await kdepth.fetch({urls[0]!r}, {str(tmp_path / 'x')!r}, allow_private_hosts=True)).num_bytes"
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
        streams = [[output for output in cell.outputs if output.output_type == "stream"] for cell in notebook.cells]
        printed = "".join(output.text for output in streams[0] if output.name == "stdout")
        errors = "".join(output.text for output in streams[0] if output.name == "stderr")
        assert [output.text for output in streams[2] if output.name == "stdout"] == [printed]
        assert notebook.cells[3].outputs[0]["data"]["text/plain"] == str(len(CLIPS[NAMES[0]]))
        assert "Traceback" not in errors
    assert printed.strip() == str([len(data) for data in CLIPS.values()] + [f"HTTP 404 Not Found ({urls[-1]})"])
