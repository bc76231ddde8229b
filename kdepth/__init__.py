"""From a list of video URLs to a queryable dataset of depth video.

    import kdepth

    sources = kdepth.read_sources("k400_val_path.txt", annotations="val.csv")
    todo = kdepth.pending(sources, root)
    clips = kdepth.download(todo, root)
    clips = kdepth.transcode(clips, root)
    clips = kdepth.estimate_depth(clips, root, model="small")
    report = kdepth.write_lance(clips, root, sources=todo)

    ds = kdepth.open_dataset(root)

`__init__.pyi` lists all public names. Pictures are in `kdepth.plots`, the sample clips in `kdepth.samples`; both are
imported by name.
"""

import os

import lazy_loader

# Torch reads this at its first tensor, Ray's workers inherit it: memory in pages of 2 MB where Linux has them. In pages
# of 4 kB a fifth of the depth stage's CPU time with `small` goes into handing out memory.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
