"""What was decided about images is told once, with count and first name."""

from mocokit.data.notes import Notes, OtherFiles


def test_a_line_for_each_text() -> None:
    notes = Notes()
    assert notes.lines() == []
    for name in ("b.tif", "a.tif"):
        notes.add("with 5 pages", name)
    notes.add("with several frames", "c.gif")
    assert notes.lines() == [
        "2 images with 5 pages; the first is b.tif",
        "1 image with several frames; the first is c.gif",
    ]


def test_tables_are_kept_by_name() -> None:
    others = OtherFiles()
    for name in ("a/b.CSV", "c.txt", "d.json", "e.parquet", "csv", "f.tsv", "g.jsonl"):
        others.add(name)
    assert others.tables == ["a/b.CSV", "d.json", "e.parquet", "f.tsv"]
