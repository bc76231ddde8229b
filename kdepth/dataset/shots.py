"""Find the shots of a clip: where one picture is cut to another."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

_WIDTH_PX = 128  # the longer side of the frames that are compared
_MIN_SHOT_FRAMES = 5  # fewer are a flash, not a shot
_WINDOW = 1  # frames before and after a cut, with which it is compared


class ShotDetector:
    """Find the first frame of each shot of a clip, given its frames one by one.

    A cut is where the picture changes at least three times as much as just before and after, by PySceneDetect's
    AdaptiveDetector. It compares with one frame on each side: a flash of one frame changes the picture twice in a row,
    and is no cut then. Frames are compared at 128 pixels across: 0.15 ms of CPU time each, whatever their size.

    Attributes:
        shots: The first frames of the shots that are known so far: a cut is known one frame after it.
    """

    def __init__(self) -> None:
        self._detector = AdaptiveDetector(min_scene_len=_MIN_SHOT_FRAMES, window_width=_WINDOW)
        self.shots = [0]
        self._num_fed = 0
        self._last: NDArray[np.uint8] | None = None

    def add(self, rgb: NDArray[np.uint8]) -> None:
        """Take the next frame: uint8 ``(H, W, 3)``, RGB."""
        height, width = rgb.shape[:2]
        scale = min(_WIDTH_PX / max(height, width), 1.0)
        size = (max(round(scale * width), 1), max(round(scale * height), 1))
        small = np.asarray(cv2.cvtColor(cv2.resize(rgb, size), cv2.COLOR_RGB2BGR), np.uint8)
        if self._last is None:
            self._feed(small)  # the detector needs a frame more at each end
        self._feed(small)
        self._last = small

    def finish(self) -> list[int]:
        """Give the number of the first frame of each shot, ascending; of no frames an empty list."""
        if self._last is None:
            return []
        self._feed(self._last)
        return self.shots

    def _feed(self, small: NDArray[np.uint8]) -> None:
        time = FrameTimecode(self._num_fed, 25.0)  # the rate is not used: everything is counted in frames
        self.shots += [cut.frame_num - _WINDOW for cut in self._detector.process_frame(time, small)]
        self._num_fed += 1
