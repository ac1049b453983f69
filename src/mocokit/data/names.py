"""Short names of data, after which runs and cache entries are called."""

from pathlib import Path

# Names of folders and files that say nothing of what is in them, in lower case.
_GENERAL = {
    *("images", "image", "imgs", "img", "pictures", "photos", "pics", "data", "dataset", "datasets", "files", "raw"),
    *("train", "training", "test", "val", "valid", "validation", "all", "shards", "archive", "x", "arrays"),
    *("jpg", "jpeg", "jpegs", "jpgs", "jpegimages", "png", "pngs", "tif", "tiff", "tiffs", "webp", "crops"),
}


def data_name(path: Path, stem: str | None = None) -> str:
    """The name of a folder or file (its ``stem``, without the ending); where that is as general as ``images``, with the
    names of the folders above before it, up to one that is not: ``flowers-images``."""
    path = path.resolve()
    names = [stem or path.name]
    for folder in path.parents:
        if names[-1].lower() not in _GENERAL or not folder.name:
            break
        names.append(folder.name)
    return "-".join(filter(None, reversed(names))) or "data"
