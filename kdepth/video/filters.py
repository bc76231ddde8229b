"""FFmpeg's filters that turn any picture into an upright, progressive BT.709 one of a given height.

They are made of the probe's numbers and of names that stand in this package; no text of a file is among them.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from kdepth.errors import UnsupportedMediaError, printable
from kdepth.video.probe import MediaInfo

MAX_SIDE_PX = 4096  # of a very wide or tall clip; its shorter side gives way
TIME_BASE = "1/120000"  # s; milliseconds and the frame times of every common rate, NTSC's too, are whole numbers of it
_HIGH_DYNAMIC_RANGE = ("smpte2084", "arib-std-b67")  # PQ and HLG
_WIDE_PRIMARIES = ("bt2020", "film", "smpte428", "smpte431", "smpte432")
# What the scale filter converts, what zscale has to, and what neither can.
_PLAIN_MATRICES = ("bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "bt2020nc")
_SPECIAL_MATRICES = ("ycgco", "bt2020c", "chroma-derived-nc", "chroma-derived-c", "ictcp")
_UNKNOWN_TRANSFERS = ("bt1361e", "smpte428")
_RGB = re.compile(r"0?(rgb|bgr|gbr|argb|abgr|x2rgb|x2bgr|pal8|bayer|xyz|gray|ya)")
_ALPHA = re.compile(r"yuva|gbrap|rgba|bgra|argb|abgr|ya8|ya16|pal8")


def video_filters(source: Path, media: MediaInfo, height: int) -> tuple[str, bool]:
    """Make the filter chain of a file.

    Args:
        source: The file, for messages.
        media: What it is.
        height: Pixels of the clip's shorter side.

    Returns:
        The chain, and whether it turns the picture itself; otherwise FFmpeg has to, before the chain.

    Raises:
        UnsupportedMediaError: Colours that can't be converted.
    """
    width, height = _clip_size(media, height)
    turns = media.interlaced and media.display_matrix is not None
    chain = ["bwdif=mode=send_frame:deint=interlaced"] if media.interlaced else []
    if turns:  # lines are fields as long as they lie
        chain += [*_upright(media), "sidedata=mode=delete:type=DISPLAYMATRIX"]
    if media.hidden_alpha or _ALPHA.match(media.pixel_format or ""):
        # On black: what lies under a transparent pixel is arbitrary.
        chain.append("format=gbrap,premultiply=inplace=1")
    # dar: display aspect ratio, of the picture as it arrives here: upright, and with its pixels' shape.
    fitted = f"w='2*max(1,round(min({width},{height}*dar)/2))':h='2*max(1,round(min({height},{width}/dar)/2))'"
    chain += _colors(source, media, fitted)
    # Pictures with one time between them (some files have them) are kept, a tick apart, and so are those before 0.
    chain.append(f"settb={TIME_BASE},setpts='if(isnan(PREV_OUTPTS),max(PTS,0),max(PTS,PREV_OUTPTS+1))'")
    chain.append(f"format=yuv420p,pad={width}:{height}:(ow-iw)/2:(oh-ih)/2")  # bars, if the shape changes
    chain += ["setsar=1", "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"]
    return ",".join(chain), turns


def _clip_size(media: MediaInfo, height: int) -> tuple[int, int]:
    """Width and height of the clip, of the first picture's shape."""
    aspect = float(media.sample_aspect_ratio) * media.width / media.height
    if abs(abs(media.rotation_deg) - 90) < 1:
        aspect = 1 / aspect
    shorter = min(height, MAX_SIDE_PX / max(aspect, 1 / aspect))
    return _even(shorter * max(1.0, aspect)), _even(shorter * max(1.0, 1 / aspect))


def _even(pixels: float) -> int:
    return 2 * max(1, math.floor(pixels / 2 + 0.5))


def _upright(media: MediaInfo) -> list[str]:
    """Filters that do as a display matrix says, in quarter turns."""
    assert media.display_matrix
    a, _, _, c, d, *_ = media.display_matrix
    match round(-media.rotation_deg / 90) % 4:
        case 1:
            return ["transpose=cclock_flip" if c > 0 else "transpose=clock"]
        case 2:
            return [*(["hflip"] if a < 0 else []), *(["vflip"] if d < 0 else [])]
        case 3:
            return ["transpose=clock_flip" if c < 0 else "transpose=cclock"]
    return ["vflip"] if d < 0 else []


def _colors(source: Path, media: MediaInfo, size: str) -> list[str]:
    """Scale, and convert colours to BT.709 of limited range."""
    # FFmpeg fails at numbers that stand for nothing.
    primaries, transfer = (
        "unknown" if name in (None, "reserved") else name for name in (media.color_primaries, media.color_transfer)
    )
    wide = primaries in _WIDE_PRIMARIES or transfer in _HIGH_DYNAMIC_RANGE
    if wide and transfer in _UNKNOWN_TRANSFERS:
        raise UnsupportedMediaError(printable(source.name), None, f"colours of the transfer characteristics {transfer}")
    if _RGB.match(media.pixel_format or "") or media.color_space == "gbr":
        matrix = None
    elif media.color_space is None:
        # Nothing said: as players do, BT.709 for HD and BT.601 below.
        matrix = "bt2020nc" if wide else "bt709" if min(media.width, media.height) >= 720 else "smpte170m"
    else:
        matrix = media.color_space
    if wide:  # some files name only one of the three
        primaries = "bt2020" if primaries == "unknown" else primaries
        transfer = "bt2020-10" if transfer == "unknown" else transfer
    chain = [f"setparams=color_primaries={primaries}:color_trc={transfer}"]
    if matrix in _SPECIAL_MATRICES:
        chain[0] += f":colorspace={matrix}"
        matrix = "bt2020nc" if wide else "bt709"
        chain.append(f"zscale=matrix={matrix}")
    elif matrix in _PLAIN_MATRICES:
        chain[0] += f":colorspace={matrix}"
    elif matrix is not None:
        raise UnsupportedMediaError(printable(source.name), None, f"colours of the matrix {matrix}")
    if not wide:
        return [*chain, f"scale={size}:out_color_matrix=bt709:out_range=tv"]
    # BT.709 at 100 cd/m2, with Hable's curve.
    chain += [f"scale={size}", "zscale=transfer=linear:npl=100", "format=gbrpf32le", "zscale=primaries=bt709"]
    if transfer in _HIGH_DYNAMIC_RANGE:
        chain.append("tonemap=hable:desat=0")
    return [*chain, "zscale=transfer=bt709:matrix=bt709:range=tv"]
