"""Many URLs into the files of a folder, from code that knows nothing of asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from kdepth.downloads.http import Fetched, Limits, Transfer
from kdepth.downloads.http_answers import followed
from kdepth.downloads.network import client_session, public_url
from kdepth.errors import DownloadError
from kdepth.schema import VIDEO_SUFFIXES, clip_id_for


def fetch_files(
    urls: Sequence[str],
    folder: str | Path,
    *,
    at_once: int = 16,
    allow_private_hosts: bool = False,
    progress: bool = True,
    **limits: Any,
) -> list[Fetched | DownloadError]:
    """Download many video files at once, in a script or in a notebook: `fetch` without ``await``.

    Args:
        urls: As for `fetch`. A URL that is there twice is fetched once.
        folder: Where they go, each as ``<clip_id><suffix>``.
        at_once: Files at once.
        allow_private_hosts, limits: As for `fetch` (``max_bytes``, ``attempts`` and so on).
        progress: Show a bar.

    Returns:
        For each URL, in their order, what became of it: a file, or the error.

    Raises:
        TypeError, ValueError: A limit that does not exist, or one that can't be.
    """
    if at_once < 1:
        raise ValueError(f"at_once={at_once} must be at least 1")
    work = _fetch_all(list(urls), Path(folder), at_once, allow_private_hosts, progress, Limits(**limits))
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # In a kernel, whose loop runs this very cell. It changes asyncio for good, and so only where there is no other way.
    import nest_asyncio2

    nest_asyncio2.apply(loop)
    return loop.run_until_complete(work)


async def _fetch_all(
    urls: list[str], folder: Path, at_once: int, allow_private_hosts: bool, progress: bool, limits: Limits
) -> list[Fetched | DownloadError]:
    from tqdm.auto import tqdm  # in a kernel it loads ipywidgets, which no worker needs

    turns = asyncio.Semaphore(at_once)

    async def one(url: str) -> Fetched | DownloadError:
        async with turns:
            try:
                followed(url, None, public_url(url), None)  # of what is no URL no name can be made
                suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
                path = folder / f"{clip_id_for(url)}{suffix if suffix in VIDEO_SUFFIXES else '.video'}"
                return await Transfer(url, path, session=session, limits=limits).run()
            except DownloadError as error:
                return error
            finally:
                bar.update()

    async with client_session(connections=at_once, allow_private_hosts=allow_private_hosts) as session:
        with tqdm(total=len(set(urls)), unit="file", disable=not progress) as bar:
            async with asyncio.TaskGroup() as group:
                tasks = {url: group.create_task(one(url)) for url in dict.fromkeys(urls)}
    return [tasks[url].result() for url in urls]
