"""Where a command may write, and what it says where it can't."""

import errno
import re

import pytest

from mocokit.errors import UserError
from mocokit.outputs import check_file, check_no_file, writing


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for path, there in (("file", "file"), ("file/a/b", "file"), ("gone", "gone"), ("gone/x", "gone")):
        why = f"--out {tmp_path / path}: {tmp_path / there} is no folder; choose another --out"
        with pytest.raises(UserError, match=f"^{why}$"):
            check_no_file("--out", tmp_path / path)
    check_no_file("--out", tmp_path / "new" / "run")


@pytest.mark.parametrize(
    ("name", "overwrite", "why"),
    [
        ("folder.png", False, "is a folder; name a file"),
        ("folder.png", True, "is a folder; name a file"),
        ("new.txt", False, "is no .png; name a .png file"),
        ("new", False, "is no .png; name a .png file"),
        ("there.png/new.png", False, "is no folder; choose another --montage"),
        ("there.png", False, "exists; name another, or --overwrite to replace it"),
        ("there.png", True, None),
        ("there.PNG", False, None),
        ("new.jpg", False, None),
        ("new/deeper/new.png", False, None),
    ],
)
def test_a_file_that_may_not_be_written_is_refused_before_the_work(tmp_path, name, overwrite, why):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "there.png").touch()

    def check():
        check_file("--montage", tmp_path / name, overwrite, (".png", ".jpg"))

    if why is None:
        check()
    else:
        with pytest.raises(UserError, match=rf"^--montage {re.escape(str(tmp_path))}/.*{re.escape(why)}$"):
            check()


def test_a_full_disk_is_the_users_to_mend(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "metrics.csv"))
    with pytest.raises(UserError, match=r"metrics.csv: No space left .* run the same command again"), writing(tmp_path):
        raise error
    with pytest.raises(UserError, match=f"^{tmp_path}: boom; "), writing(tmp_path):  # of an error that names no file
        raise OSError("boom")
    with pytest.raises(ValueError, match="not of the disk"), writing(tmp_path):
        raise ValueError("not of the disk")
