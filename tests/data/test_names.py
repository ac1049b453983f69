"""A general name is completed by the folders above; other names stay as they are."""

from pathlib import Path

import pytest

from mocokit.data.names import data_name
from mocokit.data.sources import open_source
from tests.helpers import archive, write_images


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/flowers", "flowers"),
        ("/a/flowers/images", "flowers-images"),
        ("/a/flowers/Train/JPG", "flowers-Train-JPG"),
        ("/data/images", "data-images"),  # nothing more is above
        ("/", "data"),
        ("/a/my images", "my images"),
        ("/a/b\udcffd/img", "b\udcffd-img"),
    ],
)
def test_names(path: str, expected: str) -> None:
    assert data_name(Path(path)) == expected


def test_two_sets_in_folders_of_the_same_name_have_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders, archives and arrays; from inside, too."""
    for name in ("cats", "dogs"):
        root = write_images(tmp_path / name / "images", ["a.png", "b.png"])
        assert open_source(str(root)).name == f"{name}-images"
        for ending in ("tar.gz", "zip"):
            packed = archive(root, tmp_path / name / f"data.{ending}")
            assert open_source(str(packed)).name == f"{name}-data"
        (tmp_path / name / "train.npy").touch()
        assert open_source(str(tmp_path / name / "train.npy")).name == f"{name}-train"
        monkeypatch.chdir(root)
        assert open_source(".").name == f"{name}-images"
