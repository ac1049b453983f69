"""The projector's files hold each feature, its texts and its picture in one order, and are written once."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mocokit.training.projector import write_projector


def test_rows_of_all_files_are_of_the_same_image(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    features = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    names = ["a.png", "two\nlines\tand a tab", "\u732b", os.fsdecode(b"\xff"), " "]
    for _ in range(2):  # again, in its place and without a word
        write_projector(Path("memory::run"), features, {"row": list("01234"), "image": names}, pictures)
    assert capfd.readouterr().out == ""
    board = tmp_path / "memory::run"
    read = np.loadtxt(board / "00000" / "features" / "tensors.tsv")
    np.testing.assert_allclose(read, torch.nn.functional.normalize(features).numpy(), atol=1e-5)
    lines = (board / "00000" / "features" / "metadata.tsv").read_text(encoding="utf-8").splitlines()
    told = ["a.png", "two lines and a tab", "\u732b", "?", "-"]
    assert lines == ["row\timage", *(f"{row}\t{name}" for row, name in enumerate(told))]
    sprite = np.asarray(Image.open(board / "00000" / "features" / "sprite.png"))
    assert sprite.shape == (12, 12, 3)  # three in a line
    for number, picture in enumerate(pictures):
        y, x = divmod(number, 3)
        np.testing.assert_allclose(sprite[4 * y : 4 * y + 4, 4 * x : 4 * x + 4], picture, atol=1)
    text = (board / "projector_config.pbtxt").read_text()
    assert text.count("embeddings {") == 1
    assert 'tensor_path: "00000/features/tensors.tsv"' in text
