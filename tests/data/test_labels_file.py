"""Tables of labels: whatever separates, quotes and numbers them; names that mean an image, and those that don't."""

import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mocokit.data.labels_file import LabelsFile, read_labelled, read_labels
from mocokit.errors import UserError


def read(folder: Path, text: str | bytes, columns: str | None = None, name: str = "labels.csv") -> LabelsFile:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return read_labels(str(folder / name), columns)


def classes(table: LabelsFile) -> list[str | None]:
    assert table.label_names is not None
    return [table.label_names[value] if value >= 0 else None for value in table.labels]


@pytest.mark.parametrize(
    "text",
    [
        "image,label\na.jpg,cat\nb.jpg,dog\nc.jpg,\n",
        "\ufeffFilename;Class\r\n'a.jpg';cat\r\nb.jpg;dog\r\n\r\nc.jpg;\r\n".replace("'", '"'),
        "label\tid\tPath\ncat\t1\ta.jpg\ndog\t2\tb.jpg\n\t3\tc.jpg",
        'name, category\n"a.jpg", "cat"\n"b.jpg", dog\n"c.jpg", ""\n',
        "image_id;label_id;label_name\na.jpg;1;cat\nb.jpg;0;dog\nc.jpg;;\n",
    ],
)
def test_however_it_is_written(tmp_path, text):
    table = read(tmp_path, text)
    assert (table.names, classes(table)) == (["a.jpg", "b.jpg", "c.jpg"], ["cat", "dog", None])
    assert table.splits is None


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [
        ("10 9 9", ("9", "10"), [1, 0, 0]),  # numbers, in their order
        ("1.0 0.0 1.0", ("0", "1"), [1, 0, 1]),  # as pandas writes numbers beside missing ones
        ("010 009 009", ("009", "010"), [1, 0, 0]),  # texts
        ("0 1 -1", ("0", "1"), [0, 1, -1]),
    ],
)
def test_numbers_are_classes(tmp_path, values, names, labels):
    rows = "".join(f"{row}.jpg,{value}\n" for row, value in enumerate(values.split()))
    table = read(tmp_path, f"file,class\n{rows}")
    assert (table.label_names, table.labels.tolist()) == (names, labels)


def test_names_that_are_not_one_for_each_number_are_not_used(tmp_path):
    table = read(tmp_path, "file,label,label_name\na,0,x\nb,1,x\n")
    assert table.label_names == ("0", "1")
    assert "column label_name is not used: its names are not one for each label" in table.notes


def test_parquet_and_columns_that_are_said(tmp_path):
    path = str(tmp_path / "labels.parquet")
    values = pa.array(["x", "y", "x"]).dictionary_encode()
    pq.write_table(pa.table({"where": ["a", "b", "c"], "dx": values, "part": ["train", None, "test"]}), path)
    with pytest.raises(UserError, match=r"names no column of images, .* but where, dx, part; say which"):
        read_labels(path)
    table = read_labels(path, "where, dx,part")
    assert (classes(table), table.splits.tolist()) == (["x", "y", "x"], [0, -1, 2])
    assert read_labels(path, "where,dx").splits is None


def test_splits_by_their_usual_names(tmp_path):
    table = read(tmp_path, "file,label,Split\na,x,Training\nb,y,valid\nc,x,eval\nd,x,\n")
    assert table.splits.tolist() == [0, 1, 2, -1]
    with pytest.raises(
        UserError, match="column split has 'fold 3', which is none of train, val and test; leave it out"
    ):
        read(tmp_path, "file,label,split\na,x,fold 3\nb,y,train\n")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"image,label\na\0.jpg,x\n", "null characters"),
        ("image,label\nä.jpg,x\n".encode("latin1"), "byte 12 is not UTF-8"),
        (b"image,label\n" + b"x" * 200_000 + b",a\n", "field larger"),
        (b"image,label\na,b\nc\n", "line 3 has 1 fields, the first line 2"),
        (b'image,label\n"a,b\n', "unexpected end"),
        (b"", "it is empty"),
        (b"image,label,label\na,b,c\n", "several columns are named 'label'"),
        (b"PAR1 no", "is it damaged"),
        (b"image,label\na,0.5\nb,1\n", "double with fractions, which are no classes"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path, content, why):
    name = "labels.parquet" if content.startswith(b"PAR1") else "labels.csv"
    with pytest.raises(UserError, match=why) as caught:
        read(tmp_path, content, name=name)
    assert len(str(caught.value).splitlines()) == 1


IMAGES = ["daisy/a.jpg", "daisy/1.png", "rose/1.png", "rose/c.d.png", "rose/cafe\u0301.jpg", "z.png"]


@pytest.mark.parametrize(
    ("row", "image"),
    [
        ("daisy/1.png", 1),
        ("./rose/1.png", 2),
        ("rose\\1.png", 2),
        ("C:\\my\\flowers\\rose\\1.png", 2),
        ("/data/flowers/daisy/a.jpg", 0),
        ("a.jpg", 0),
        ("a", 0),
        ("a.png", 0),
        ("rose/1", 2),
        ("c.d", 3),
        ("elsewhere/a.jpg", 0),
        ("caf\u00e9.jpg", 4),
        ("1.png", None),
        ("1", None),
        ("b.jpg", None),
        ("aisy/1.png", None),
    ],
)
def test_which_image_a_row_is_about(tmp_path, row, image):
    table = read(tmp_path, f"image,label\n{row},x\nz.png,x\n")
    row_of, lines = table.match(IMAGES)
    assert row_of.tolist() == [*(0 if i == image else -1 for i in range(5)), 1]
    several = "1 row of the labels is of several images, so they say nothing of any; the first is "
    none = "1 row of the labels is of no image; the first is "
    unused = none if row in ("b.jpg",) else several
    alone = "1 row of the labels is of images in other folders, found by the ends of their paths alone; the first is "
    told = [unused + row] if image is None else [alone + row] if row == "elsewhere/a.jpg" else []
    assert lines == told


def test_a_row_that_says_more_of_the_path_counts(tmp_path):
    table = read(tmp_path, "image,label\ntest/a.jpg,x\ntrain/a.jpg,y\na.png,x\n")
    row_of, lines = table.match(["train/a.jpg"])
    assert row_of.tolist() == [1]
    assert lines == ["2 rows of the labels are of no image; the first is test/a.jpg"]


def test_rows_that_say_more_of_the_path_may_come_later(tmp_path):
    """A table of the whole set in alphabetical order, where images of a part are there."""
    rows = "birds/1.jpg,bird\nboats/1.jpg,boat\ncats/1.jpg,cat\ndogs/2.jpg,dog\n"
    table = read(tmp_path, "image,label\n" + rows)
    row_of, lines = table.match(["cats/1.jpg", "dogs/2.jpg"])
    assert row_of.tolist() == [2, 3]
    assert lines == ["2 rows of the labels are of no image; the first is birds/1.jpg"]


def test_rows_for_images_in_folders_of_another_name_are_told(tmp_path):
    table = read(tmp_path, "image,label\nbirds/1.jpg,bird\ncats/2.jpg,cat\n/home/me/dogs/3.jpg,dog\n4.jpg,dog\n")
    row_of, lines = table.match(["new/1.jpg", "train/cats/2.jpg", "dogs/3.jpg", "new/4.jpg"])
    assert row_of.tolist() == [0, 1, 2, 3]
    assert lines == [
        "1 row of the labels is of images in other folders, found by the ends of their paths alone; "
        "the first is birds/1.jpg"
    ]


def test_rows_for_images_further_up_in_other_folders_are_told(tmp_path):
    table = read(tmp_path, "image,label\np3/images/003.png,x\np4/images/004.png,x\n")
    row_of, lines = table.match(["p103/images/003.png", "p4/images/004.png"])
    assert row_of.tolist() == [0, 1]
    assert lines == [
        "1 row of the labels is of images in other folders, found by the ends of their paths alone; "
        "the first is p3/images/003.png"
    ]


@pytest.mark.parametrize(
    ("values", "names"), [(("cat", "nan", "dog"), ["cat", "dog"]), (("0", "NaN", "1"), ["0", "1"])]
)
def test_what_is_not_a_number_is_no_label(tmp_path, values, names):
    table = read(tmp_path, "image,label\n" + "".join(f"{n}.png,{value}\n" for n, value in enumerate(values)))
    assert (list(table.label_names), table.labels.tolist()) == (names, [0, -1, 1])


def test_two_rows_that_disagree_are_refused(tmp_path):
    table = read(tmp_path, "image,label\na.jpg,x\nb.jpg,y\na.jpg,x\n")
    assert table.match(["a.jpg", "b.jpg"])[0].tolist() == [0, 1]
    table = read(tmp_path, "image,label\na.jpg,x\nb.jpg,y\n./a.jpg,y\n")
    with pytest.raises(UserError, match=r"two rows, 'a.jpg' and './a.jpg', say different things of a.jpg"):
        table.match(["a.jpg", "b.jpg"])


def test_a_table_of_other_images_is_refused(tmp_path):
    table = read(tmp_path, "image,label\nx.jpg,x\ny.jpg,y\n")
    with pytest.raises(UserError, match=r"none of its 2 names is that of an image: the first is x.jpg, the first im"):
        table.match(["a.jpg", "b.jpg"])
    with pytest.raises(UserError, match=r"first image is b/c.tar/00000000; images in shards are called SHARD/NUMBER"):
        table.match(["b/c.tar/00000000", "b/c.tar/00000001"])


def test_unicode_forms_are_one(tmp_path):
    name = unicodedata.normalize("NFD", "über.jpg")
    table = read(tmp_path, "image,label\nüber.jpg,x\nb,y\n")
    np.testing.assert_array_equal(table.match([name, "b.jpg"])[0], [0, 1])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("image,order\na.jpg,1\nb.jpg,2\n", ["a.jpg", "b.jpg"]),  # no column of labels: all of them
        ("path,label\na.jpg,cat\nb.jpg,\nc.jpg,cat\n", ["a.jpg", "c.jpg"]),  # a single class is one here
        ("path,label\na.jpg,3\nb.jpg,-1\nc.jpg,\n", ["a.jpg"]),
        ("path,label\na.jpg,\n", []),
    ],
)
def test_which_images_are_labelled(tmp_path, text, names):
    (tmp_path / "given.csv").write_text(text)
    table = read_labelled(str(tmp_path / "given.csv"))
    assert table.names == names
    if names:
        row_of, lines = table.match(["x/c.jpg", "b.jpg", "a.jpg"])
        assert {row for row in row_of.tolist() if row >= 0} == set(range(len(names)))
        assert not lines


def test_two_rows_of_an_image_that_is_labelled_say_the_same(tmp_path):
    (tmp_path / "given.csv").write_text("path,label\na.jpg,cat\na.jpg,dog\n")
    assert read_labelled(str(tmp_path / "given.csv")).match(["a.jpg"])[0].tolist() == [0]
