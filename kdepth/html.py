"""Small HTML that a notebook shows for a clip, a dataset and a report. Every text is escaped: labels, URLs and error
messages come from elsewhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from html import escape

import cv2
import numpy as np
from numpy.typing import NDArray

# Pictures in a card are thumbnails: a page of them has to stay small.
_PICTURE_HEIGHT = 150


def _text(text: object) -> str:
    """Escape text for HTML, and keep MathJax off it: its delimiters count only where they share an element."""
    return re.sub(r"[$\\]", r"<span>\g<0></span>", escape(str(text)))


def card(title: object, facts: Mapping[str, object], *, html: Iterable[str] = ()) -> str:
    """Make HTML of a title, of ``html`` that the caller made safe, and of a table of facts but those that are None."""
    lines = "".join(
        f'<tr><th style="text-align:left;padding:0 1em 0 0">{_text(name)}</th>'
        f'<td style="text-align:left;padding:0;white-space:pre-wrap">{_text(value)}</td></tr>'
        for name, value in facts.items()
        if value is not None
    )
    # No colours: it has to be readable on a dark theme too.
    return f"<div><b>{_text(title)}</b>{''.join(html)}<table>{lines}</table></div>"


def coloured(inverse_depth: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """Colour inverse depth ``(H, W)`` from `low` (dark) to `high` (bright): uint8 RGB ``(H, W, 3)``."""
    level = ((inverse_depth - low) * np.float32(255 / (high - low))).clip(0, 255)
    bgr = cv2.applyColorMap(level.astype(np.uint8), cv2.COLORMAP_INFERNO)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def rgb_and_depth(rgb: NDArray[np.uint8], *inverse_depth: NDArray[np.float32]) -> str:
    """Make an ``<img>`` of a frame ``(H, W, 3)`` beside depths of it, ``(H, W)`` each.

    Near is bright; the limits are the 1st and 99th percentile.
    """
    pictures = [rgb]
    for one in inverse_depth:
        low, high = np.percentile(one[::4, ::4], (1, 99))
        pictures.append(coloured(one, low, max(high, low + 1e-6)))
    row = cv2.cvtColor(np.hstack(pictures), cv2.COLOR_RGB2BGR)
    width = round(row.shape[1] * _PICTURE_HEIGHT / row.shape[0])
    # Twice as many pixels as are shown, for screens that have them.
    small = cv2.resize(row, (2 * width, 2 * _PICTURE_HEIGHT), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, 80))[1].tobytes()
    data = base64.b64encode(jpeg).decode()
    return f'<br><img width="{width}" alt="a frame beside its depth" src="data:image/jpeg;base64,{data}">'
