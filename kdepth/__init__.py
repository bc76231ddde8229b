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

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
