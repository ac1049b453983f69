"""``mocokit embed``: a row for every image, equal to what ``Encoder.embed`` gives, whatever interrupts it."""

import csv
import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import mocokit
import mocokit.commands.embed as module
from mocokit.cli import main
from mocokit.data.store import Skipped, open_store
from mocokit.deploy.embedded_parts import Parts
from mocokit.deploy.encoder_file import read_header, save_encoder
from mocokit.errors import Interrupted, UserError
from mocokit.evaluation.features import extract
from mocokit.model import encoding
from mocokit.model.encoder import EncoderSpec
from mocokit.rundir import RunDirectory
from tests.helpers import archive, encode, noise, png16, write_images
from tests.tiny_runs import TinyRun


@pytest.fixture
def run(tiny_run: TinyRun, tmp_path) -> Path:
    """A copy of the finished run that may be written to."""
    return Path(shutil.copytree(tiny_run.path, tmp_path / "run"))


@pytest.fixture
def images(tmp_path) -> Path:
    """Images of several sizes, without labels, some of them damaged."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(40):
        size = (8, 8) if i % 3 else (5 + i, 30)
        (folder / f"{i:02d}.png").write_bytes(encode(noise(i, *size, channels=1 + 2 * (i % 2))))
    (folder / "07b.png").write_bytes(b"no image")
    (folder / "33b.png").write_bytes((folder / "33.png").read_bytes()[:60])
    return folder


def read(path: Path) -> pd.DataFrame:
    """Any of the three formats."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return pd.DataFrame({name: list(file[name]) for name in file if name != "metadata"})
    table = pd.read_csv(f"{path}.csv", keep_default_na=False)
    return table.assign(feature=list(np.load(path, allow_pickle=False)))


def features(path: Path) -> np.ndarray:
    return np.stack(read(path)["feature"])


def test_some_images_have_no_label(tiny_run, run, tmp_path, capfd):
    shutil.copytree(tiny_run.data / "test", tmp_path / "data" / "test")
    write_images(tmp_path / "data", ["test/a.png"])
    mocokit.embed(str(run), str(tmp_path / "data"), str(tmp_path / "f.parquet"))
    table = read(tmp_path / "f.parquet")
    assert table["label"].isna().tolist() == [name == "test/a.png" for name in table["path"]]
    assert set(table["split"]) == {"test"}
    assert "1 of 49 images has no label, first test/a.png" in capfd.readouterr().err


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".npy"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_those_of_encoder_embed(tiny_run, run, tmp_path, suffix, dtype):
    output = tmp_path / f"f{suffix}"
    result = mocokit.embed(str(run), str(tiny_run.data), str(output), dtype=dtype)
    table = read(output)
    files = sorted(tiny_run.data.rglob("*.png"))
    assert table["path"].tolist() == [file.relative_to(tiny_run.data).as_posix() for file in files]
    assert table["label"].tolist() == [file.parent.name for file in files]
    assert table["split"].tolist() == [file.parent.parent.name for file in files]
    assert list(table)[-1] == "feature" or suffix == ".npz"
    expected = mocokit.load(run).embed(files).numpy()
    found = np.stack(table["feature"])
    assert found.dtype == dtype
    assert np.allclose(found, expected, rtol=0, atol=1e-5 if dtype == "float32" else 1e-2)
    assert {name: result[name] for name in ("path", "rows", "dim", "skipped")} == {
        "path": str(output), "rows": len(files), "dim": expected.shape[1], "skipped": 0
    }  # fmt: skip
    assert result["images_per_second"] > 0
    assert json.loads((run / "results" / "embed.json").read_text()) == result
    assert not list(tmp_path.glob(".*"))
    assert not list(tmp_path.glob("*.skipped.csv"))


def test_rows_are_those_of_the_evaluation(tiny_run, run, tmp_path):
    mocokit.embed(str(run), str(tiny_run.data), str(tmp_path / "f.parquet"))
    store = open_store(str(tiny_run.data), image_size=8, channels=3)
    table = read(tmp_path / "f.parquet").set_index("path")["feature"]
    for split in store.splits.values():
        expected = extract(mocokit.load(run), split).numpy()
        assert np.allclose(np.stack(table[split.names]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("workers", [0, 2])
def test_batch_size_and_workers_do_not_matter(run, images, tmp_path, batch_size, workers):
    options = {"max_skipped": 0.2}
    mocokit.embed(str(run), str(images), str(tmp_path / "a.npy"), batch_size=16, **options)
    mocokit.embed(str(run), str(images), str(tmp_path / "b.npy"), batch_size=batch_size, workers=workers, **options)
    assert np.allclose(features(tmp_path / "a.npy"), features(tmp_path / "b.npy"), rtol=0, atol=1e-5)
    assert (tmp_path / "a.npy.csv").read_text() == (tmp_path / "b.npy.csv").read_text()


def test_an_archive_gives_what_its_folder_gives(tiny_run, run, tmp_path):
    packed = archive(tiny_run.data, tmp_path / "data.tar.gz")
    for number, data in enumerate((tiny_run.data, packed)):
        mocokit.embed(str(run), str(data), str(tmp_path / f"{number}.parquet"))
    folder, archived = (read(tmp_path / f"{number}.parquet") for number in (0, 1))
    assert np.array_equal(np.stack(folder.pop("feature")), np.stack(archived.pop("feature")))
    assert folder.equals(archived)


def test_half_the_digits(run, images, tmp_path):
    """bfloat16 has eight binary digits, so features are near, and not the same."""
    for precision in ("fp32", "bf16"):
        mocokit.embed(str(run), str(images), str(tmp_path / f"{precision}.npy"), precision=precision, max_skipped=0.1)
    full, half = features(tmp_path / "fp32.npy"), features(tmp_path / "bf16.npy")
    distance = np.linalg.norm(half - full) / np.linalg.norm(full)
    assert 1e-4 < distance < 2e-2


def test_deep_images(tmp_path):
    """Scaled by the range that the encoder was trained with, as the store scales them."""
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 600 * (i + 1), (9, 9, 1), dtype=np.uint16)
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / "deep" / f"{i}.png").write_bytes(png16(pixels))
    spec = EncoderSpec("resnet18_narrow", 8, 1, (0.4,), (0.2,), (50.0, 3000.0))
    encoder = mocokit.Encoder.create(spec).eval()
    save_encoder(encoder, tmp_path / "encoder.safetensors", {"seed": 0})
    mocokit.embed(str(tmp_path / "encoder.safetensors"), str(tmp_path / "deep"), str(tmp_path / "f.npy"))
    files = sorted((tmp_path / "deep").iterdir())
    assert np.allclose(features(tmp_path / "f.npy"), encoder.embed(files), rtol=0, atol=1e-5)
    assert np.ptp(features(tmp_path / "f.npy"), axis=0).max() > 1e-3


def test_a_fine_tuned_encoder_also_classifies(tiny_run, run, tmp_path):
    encoder = mocokit.load(run)
    encoder.classifier, encoder.classes = nn.Linear(encoder.dim, 3), ("apple", "pear", "plum")
    nn.init.normal_(encoder.classifier.weight)
    save_encoder(encoder, tmp_path / "tuned.safetensors", read_header(run)[1])
    mocokit.embed(str(tmp_path / "tuned.safetensors"), str(tiny_run.data), str(tmp_path / "f.parquet"))
    table = read(tmp_path / "f.parquet")
    expected = encoder.classify(sorted(tiny_run.data.rglob("*.png")))
    assert table["predicted"].tolist() == [encoder.classes[i] for i in expected.argmax(dim=1)]
    assert np.allclose(table["probability"], expected.amax(dim=1), atol=1e-5)
    assert not (run / "results" / "embed.json").exists()


def test_one_image_that_cannot_be_used_is_told_as_one(tmp_path, capfd):
    config = SimpleNamespace(max_skipped=0.5, data="d")
    module._report_skipped(tmp_path / "skipped.csv", [Skipped("a.png", "damaged")], 9, config)
    assert "1 image can't be used; " in capfd.readouterr().err


def test_skipped_images_are_listed(run, images, tmp_path, capfd):
    result = mocokit.embed(str(run), str(images), str(tmp_path / "f.parquet"), max_skipped=0.1)
    assert (result["rows"], result["skipped"]) == (40, 2)
    with (tmp_path / "f.parquet.skipped.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["07b.png", "33b.png"]
    assert "f.parquet.skipped.csv" in capfd.readouterr().err
    assert not {"07b.png", "33b.png"} & set(read(tmp_path / "f.parquet")["path"])
    assert read(tmp_path / "f.parquet")["label"].isna().all()


def test_too_many_skipped_fails_and_what_was_done_is_kept(run, images, tmp_path, monkeypatch):
    arguments = str(run), str(images), str(tmp_path / "f.npy")
    with pytest.raises(UserError, match=r"2 of 42 images \(4\.8%\) .* --max-skipped"):
        mocokit.embed(*arguments, max_skipped=0.01)
    assert (tmp_path / "f.npy.skipped.csv").exists()
    assert not (tmp_path / "f.npy").exists()
    monkeypatch.setattr(encoding, "_features", None)  # nothing is encoded again
    result = mocokit.embed(*arguments, max_skipped=0.1)
    assert (result["rows"], result["images_per_second"]) == (40, None)


def test_no_usable_image(run, tmp_path):
    write_images(tmp_path / "data", ["a.png"])
    (tmp_path / "data" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="no usable images"):
        mocokit.embed(str(run), str(tmp_path / "data"), str(tmp_path / "f.npy"), max_skipped=1.0)


# Interruption ---------------------------------------------------------------------------------------------


class Stopping:
    """Encodes so many batches, then does what a user or a machine does; counts images."""

    def __init__(self, times: int, error: BaseException) -> None:
        self.inner, self.times, self.error, self.images = encoding._features, times, error, 0

    def __call__(self, encoder, batch, *rest):
        if self.times == 0:
            raise self.error
        self.times -= 1
        self.images += len(batch[0])
        return self.inner(encoder, batch, *rest)


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".npy"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_resumes_to_the_same_bytes(run, images, tmp_path, suffix, error, monkeypatch):
    arguments, options = (str(run), str(images)), {"batch_size": 4, "max_skipped": 0.1}
    mocokit.embed(*arguments, str(tmp_path / f"whole{suffix}"), **options)
    monkeypatch.setattr("mocokit.deploy.embedded_parts.PART_ROWS", 8)
    output = tmp_path / f"f{suffix}"
    monkeypatch.setattr(encoding, "_features", Stopping(5, error))
    with pytest.raises((Interrupted, MemoryError)) as stopped:
        mocokit.embed(*arguments, str(output), **options)
    if stopped.type is Interrupted:
        assert "20 of 42 images" in str(stopped.value)
    assert not output.exists()
    monkeypatch.undo()
    rest = Stopping(100, error)
    monkeypatch.setattr(encoding, "_features", rest)
    assert mocokit.embed(*arguments, str(output), **options)["rows"] == 40
    assert rest.images == 42 - 20 - 1  # a damaged one is not encoded
    assert np.array_equal(features(output), features(tmp_path / f"whole{suffix}"))
    assert read(output)["path"].tolist() == read(tmp_path / f"whole{suffix}")["path"].tolist()
    assert not list(tmp_path.glob(".*"))


KILLING = """
import os, signal, sys
import mocokit.commands.embed
import pandas  # pyarrow would, in every child
from mocokit.cli import main
from mocokit.deploy import embedded_parts

run, images, suffix, step, by = sys.argv[1:]
embedded_parts.PART_ROWS = 4
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "tempfile.mkstemp")

def embed(output, kill_at=None):
    os.makedirs(os.path.dirname(output), exist_ok=True)
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    changes = 0
    def watch(event, arguments):
        nonlocal changes
        changes += event in CHANGES
        if event in CHANGES and changes == kill_at:
            if by == "SIGINT":
                raise KeyboardInterrupt  # as at a Ctrl-C
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    code = main(["embed", run, images, "-o", output, "--batch-size", "4", "--max-skipped", "0.2", "--workers", "0"])
    if kill_at == "end":
        os.kill(os.getpid(), signal.SIGKILL)  # all is done, and nobody has heard of it
    os._exit(code)

assert embed(f"whole/f{suffix}") == 0
for change in range(1, 1000, int(step)):
    code = embed(f"{change}/f{suffix}", kill_at=change)
    if code == 0:
        break
    assert code == (130 if by == "SIGINT" else -signal.SIGKILL), code
    assert embed(f"{change}/f{suffix}") == 0
assert embed(f"end/f{suffix}", kill_at="end") == -signal.SIGKILL
assert embed(f"end/f{suffix}") == 0
print(change)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "step", "by"),
    [(".parquet", 4, "SIGKILL"), (".npz", 5, "SIGKILL"), (".npy", 2, "SIGKILL"), (".npy", 3, "SIGINT")],
)
def test_killed_at_any_change_on_disk_and_run_again_gives_the_same_bytes(run, images, tmp_path, suffix, step, by):
    """A signal right before the n-th file or folder is made, renamed or removed, for each ``step``-th n, or when all is
    done."""
    for image in sorted(images.iterdir())[11:]:
        image.unlink()
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-c", KILLING, str(run), str(images), suffix, str(step), by]
    result = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 15
    whole = {file.name: file.read_bytes() for file in (work / "whole").iterdir()}
    assert {f"f{suffix}", f"f{suffix}.skipped.csv"} <= whole.keys()
    for folder in work.iterdir():
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole, folder.name
    assert [file.name for file in (run / "results").iterdir() if file.name.endswith(".tmp")] == []


def test_a_finished_output_is_recognised_by_its_parts(run, images, tmp_path, monkeypatch):
    """Killed when the output had its name and the parts were still there."""
    arguments = str(run), str(images), str(tmp_path / "f.npy")
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "remove", lambda self: None)
        first = mocokit.embed(*arguments, max_skipped=0.1)
    before = (tmp_path / "f.npy").read_bytes()
    monkeypatch.setattr(encoding, "_features", None)
    again = mocokit.embed(*arguments, max_skipped=0.1)
    same = ("path", "rows", "dim", "skipped", "config", "data_fingerprint")
    assert {name: again[name] for name in same} == {name: first[name] for name in same}
    assert (tmp_path / "f.npy").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_finished_output_is_left_as_it_is_unless_the_features_would_be_others(
    run, images, tmp_path, monkeypatch, capfd
):
    for suffix in (".parquet", ".npz", ".npy"):
        output = tmp_path / f"f{suffix}"
        first = mocokit.embed(str(run), str(images), str(output), max_skipped=0.1)
        before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.glob(f"f{suffix}*")}
        with monkeypatch.context() as patch:
            patch.setattr(encoding, "_features", None)  # nothing is encoded
            again = mocokit.embed(str(run), str(images), str(output), max_skipped=0.1)
        assert f"{output} is finished; give another --output, or --overwrite to do it again" in capfd.readouterr().err
        assert {name: again[name] for name in ("rows", "skipped")} == {
            name: first[name] for name in ("rows", "skipped")
        }
        assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in before} == before
        with pytest.raises(UserError, match=rf"f\{suffix} exists; .* --overwrite"):
            mocokit.embed(str(run), str(images), str(output), dtype="float16", max_skipped=0.1)
        assert output.read_bytes() == before[output][0]
    (tmp_path / "f.npy.csv").unlink()  # a part of it is missing: it is written again
    mocokit.embed(str(run), str(images), str(tmp_path / "f.npy"), max_skipped=0.1)
    assert {file: file.read_bytes() for file in before} == {file: content for file, (content, _) in before.items()}
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(UserError, match=r"2 of 42 images .* --max-skipped"):
        mocokit.embed(str(run), str(images), str(tmp_path / "f.npy"), max_skipped=0.01)


def test_a_file_that_appeared_since_the_interruption_is_not_overwritten(run, images, tmp_path, monkeypatch):
    arguments, options = (str(run), str(images), str(tmp_path / "f.npy")), {"max_skipped": 0.1}
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "_features", Stopping(1, KeyboardInterrupt()))
        with pytest.raises(Interrupted):
            mocokit.embed(*arguments, batch_size=4, **options)
    np.save(tmp_path / "f.npy", np.ones((3, 2)))
    with pytest.raises(UserError, match=r"f\.npy exists; .* --overwrite"):
        mocokit.embed(*arguments, **options)
    assert np.load(tmp_path / "f.npy").tolist() == [[1, 1]] * 3
    assert mocokit.embed(*arguments, **options, overwrite=True)["rows"] == 40


def test_interrupted_exits_130_with_the_way_on(run, images, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(encoding, "_features", Stopping(0, KeyboardInterrupt()))
    assert main(["embed", str(run), str(images), "-o", str(tmp_path / "f.npy")]) == 130
    assert "run the same command to go on" in capfd.readouterr().err


def test_columns_are_of_the_table_and_the_folders_that_are_named(run, tmp_path):
    days = tmp_path / "days"
    for day in ("monday", "friday"):
        for number in range(2):
            (days / day).mkdir(parents=True, exist_ok=True)
            (days / day / f"{number}.png").write_bytes(encode(noise(number)))
    output = tmp_path / "f.parquet"
    arguments = {"run": str(run), "data": str(days), "output": str(output)}

    def columns() -> list[tuple[str, str, str]]:
        table = read(output).fillna({"label": ""})
        return list(zip(*(table[name] for name in ("path", "split", "label")), strict=True))

    mocokit.embed(**arguments, train="monday", test="friday")
    assert [split for _, split, _ in columns()] == ["test", "test", "train", "train"]
    table = tmp_path / "labels.csv"
    table.write_text("image,label,split\nmonday/0.png,x,train\nmonday/1.png,y,test\nfriday/0.png,x,train\n")
    with pytest.raises(UserError, match="--overwrite"):
        mocokit.embed(**arguments, labels=str(table))
    mocokit.embed(**arguments, labels=str(table), overwrite=True)
    assert columns() == [
        ("friday/0.png", "train", "x"),
        ("friday/1.png", "train", ""),
        ("monday/0.png", "train", "x"),
        ("monday/1.png", "test", "y"),
    ]
    before = output.read_bytes()
    mocokit.embed(**arguments, labels=str(table))
    assert output.read_bytes() == before
    table.write_text(table.read_text().replace("y,test", "x,test"))
    with pytest.raises(UserError, match="--overwrite"):
        mocokit.embed(**arguments, labels=str(table))


@pytest.mark.parametrize("change", ["data", "dtype", "precision", "run"])
def test_parts_of_another_command_are_not_mixed_in(run, images, tmp_path, change, monkeypatch):
    options = {"batch_size": 4, "max_skipped": 0.1}
    arguments = {"run": str(run), "data": str(images), "output": str(tmp_path / "f.npy")}
    monkeypatch.setattr(encoding, "_features", Stopping(5, KeyboardInterrupt()))
    with pytest.raises(Interrupted):
        mocokit.embed(**arguments, **options)
    monkeypatch.undo()
    if change == "data":
        (images / "00.png").write_bytes(encode(noise(99)))
    elif change == "dtype":
        options["dtype"] = "float16"
    elif change == "precision":
        options["precision"] = "bf16"
    else:
        encoder = mocokit.load(run)
        with torch.no_grad():
            encoder.backbone.bn1.bias += 1
        save_encoder(encoder, run / "encoder.safetensors", read_header(run)[1])
    with pytest.raises(UserError, match="--overwrite"):
        mocokit.embed(**arguments, **options)
    mocokit.embed(**arguments, **options, overwrite=True)
    names = [name for name in sorted(p.name for p in images.iterdir()) if "b" not in name]
    expected = mocokit.load(run).embed([images / name for name in names])
    assert np.allclose(features(tmp_path / "f.npy"), expected, rtol=0, atol=0.1 if change == "precision" else 1e-2)


def test_what_has_begun_goes_on_in_its_precision(run, images, tmp_path, monkeypatch):
    """Which `auto` may choose otherwise the next day, or on another machine."""
    arguments = {"run": str(run), "data": str(images), "output": str(tmp_path / "f.npz"), "max_skipped": 0.1}
    monkeypatch.setattr(module, "encoding_precision", lambda encoder, images: "bf16")
    with monkeypatch.context() as stopping:
        stopping.setattr(encoding, "_features", Stopping(5, KeyboardInterrupt()))
        with pytest.raises(Interrupted):
            mocokit.embed(**arguments, batch_size=4)
    monkeypatch.setattr(module, "encoding_precision", lambda encoder, images: "fp32")
    assert mocokit.embed(**arguments)["config"]["precision"] == "bf16"
    again = mocokit.embed(**arguments)
    assert (again["config"]["precision"], again["images_per_second"]) == ("bf16", None)  # finished
    with monkeypatch.context() as stopping:
        stopping.setattr(encoding, "_features", Stopping(5, KeyboardInterrupt()))
        with pytest.raises(Interrupted):
            mocokit.embed(**arguments, batch_size=4, overwrite=True)
    monkeypatch.setattr(module, "encoding_precision", lambda encoder, images: "bf16")
    assert mocokit.embed(**arguments, overwrite=True)["config"]["precision"] == "fp32"  # its parts go on, too
    with pytest.raises(UserError, match="exists"):
        mocokit.embed(**arguments, precision="bf16")


def test_full_disk_is_one_line_and_nothing_is_lost(run, images, tmp_path, monkeypatch):
    arguments = str(run), str(images), str(tmp_path / "f.npy")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_features", full)
    with pytest.raises(UserError, match=r"No space left on device.*run the same command again"):
        mocokit.embed(*arguments, max_skipped=0.1)
    monkeypatch.undo()
    monkeypatch.setattr(encoding, "_features", None)
    assert mocokit.embed(*arguments, max_skipped=0.1)["rows"] == 40


def test_a_second_command_on_the_same_output_is_refused(run, images, tmp_path, monkeypatch):
    """Also when the first one is about to end: with other features, the second would take an output for its own."""
    arguments, tried = (str(run), str(images), str(tmp_path / "f.npy")), []

    def writing(*written):
        for dtype in ("float32", "float16"):
            with pytest.raises(UserError, match=r"f\.npy\.parts: process \d+ on .* writes there; .* write elsewhere"):
                mocokit.embed(*arguments, max_skipped=0.1, dtype=dtype)
            tried.append(dtype)
        write_features(*written)

    write_features = module.write_features
    monkeypatch.setattr(module, "write_features", writing)
    assert mocokit.embed(*arguments, max_skipped=0.1)["rows"] == 40
    assert len(tried) == 2
    assert not list(tmp_path.glob(".*"))
    with RunDirectory(tmp_path / ".f.npy.parts").locked(), pytest.raises(UserError, match="writes there"):
        mocokit.embed(*arguments, max_skipped=0.1)  # a finished one, too


def test_a_part_that_is_gone_is_noticed_and_made_anew(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr("mocokit.deploy.embedded_parts.PART_ROWS", 8)
    arguments, add = (str(run), str(images), str(tmp_path / "f.npy")), Parts.add

    def add_and_lose(self, *results):
        add(self, *results)
        (self.directory / "8-16.parquet").unlink(missing_ok=True)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "add", add_and_lose)
        with pytest.raises(UserError, match="is damaged"):
            mocokit.embed(*arguments, max_skipped=0.1, batch_size=4)
    assert not (tmp_path / "f.npy").exists()
    assert mocokit.embed(*arguments, max_skipped=0.1, batch_size=4)["rows"] == 40


# Wrong input ----------------------------------------------------------------------------------------------


def test_an_output_that_exists(run, tiny_run, tmp_path):
    output = tmp_path / "f.npy"
    np.save(output, np.ones(3))
    (tmp_path / "f.npy.skipped.csv").write_text("of an earlier one")
    before = output.read_bytes()
    with pytest.raises(UserError, match=r"exists; .* --overwrite"):
        mocokit.embed(str(run), str(tiny_run.data), str(output))
    assert output.read_bytes() == before
    (tmp_path / "g.npy.csv").write_text("mine")
    with pytest.raises(UserError, match=r"g\.npy\.csv exists"):
        mocokit.embed(str(run), str(tiny_run.data), str(tmp_path / "g.npy"))
    mocokit.embed(str(run), str(tiny_run.data), str(output), overwrite=True)
    assert features(output).ndim == 2
    assert not (tmp_path / "f.npy.skipped.csv").exists()


@pytest.mark.parametrize(
    ("output", "match"), [("f.csv", r"ends in \.parquet, \.npz, \.npy"), ("folder.npy", "is a folder")]
)
def test_outputs_that_cannot_be(run, tiny_run, tmp_path, output, match, monkeypatch):
    (tmp_path / "folder.npy").mkdir()
    monkeypatch.setattr(module, "open_source", None)  # nothing is read before
    with pytest.raises(UserError, match=match):
        mocokit.embed(str(run), str(tiny_run.data), str(tmp_path / output))


def test_a_file_where_the_output_needs_a_folder(run, tiny_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is no folder; choose another --output"):
        mocokit.embed(str(run), str(tiny_run.data), str(tmp_path / "file" / "f.npy"))


def test_an_encoder_that_gives_no_numbers(run, tiny_run, tmp_path):
    encoder = mocokit.load(run)
    encoder.backbone.bn1.weight.data.fill_(float("nan"))
    save_encoder(encoder, run / "encoder.safetensors", read_header(run)[1])
    with pytest.raises(UserError, match="infinite or not a number"):
        mocokit.embed(str(run), str(tiny_run.data), str(tmp_path / "f.npy"))


def test_features_too_large_for_float16(run, tiny_run, tmp_path):
    encoder = mocokit.load(run)
    for parameter in encoder.backbone.layer4[-1].bn2.parameters():
        parameter.data.fill_(1e6)
    save_encoder(encoder, run / "encoder.safetensors", read_header(run)[1])
    with pytest.raises(UserError, match="--dtype float32"):
        mocokit.embed(str(run), str(tiny_run.data), str(tmp_path / "f.npy"), dtype="float16")


def test_json(run, tiny_run, tmp_path, capfd):
    output = tmp_path / "f.parquet"
    assert main(["embed", str(run), str(tiny_run.data), "-o", str(output), "--json"]) == 0
    stdout, stderr = capfd.readouterr()
    assert (json.loads(stdout)["path"], json.loads(stdout)["rows"]) == (str(output), len(read(output)))
    assert "images/s" in stderr
    assert main(["embed", str(run), str(tiny_run.data), "-o", str(output), "--dtype", "float16"]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_a_map_as_columns_also_of_a_finished_file(run, tiny_run, tmp_path, monkeypatch, capfd):
    plain, mapped = tmp_path / "plain.parquet", tmp_path / "mapped.parquet"
    for path in (plain, mapped):
        mocokit.embed(str(run), str(tiny_run.data), str(path))
    monkeypatch.setattr(module, "embed_images", None)  # nothing is embedded again
    mocokit.embed(str(run), str(tiny_run.data), str(mapped), map=True)
    before, after = read(plain), read(mapped)
    assert list(after) == ["path", "split", "label", "x", "y", "cluster", "neighbours", "feature"]
    assert (after["path"] == before["path"]).all()
    assert np.array_equal(np.stack(after["feature"]), np.stack(before["feature"]))
    found = mocokit.search(str(mapped), [4], k=5)["queries"][0]
    assert [n["row"] for n in found["neighbours"]] == after["neighbours"][4].tolist()
    written = mapped.read_bytes()
    mocokit.embed(str(run), str(tiny_run.data), str(mapped), map=True)  # nothing is left to do
    assert mapped.read_bytes() == written


def test_maps_that_cannot_be(run, tiny_run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--map: its columns are for .parquet; .*f.npy is none"):
        mocokit.embed(str(run), str(tiny_run.data), str(tmp_path / "f.npy"), map=True)
    write_images(tmp_path / "one", ["a.png"])
    with pytest.raises(UserError, match="--map: a single image has no neighbours; leave it out"):
        mocokit.embed(str(run), str(tmp_path / "one"), str(tmp_path / "f.parquet"), map=True)
    write_images(tmp_path / "one", ["b.png", "c.png"])
    for name in ("b.png", "c.png"):
        (tmp_path / "one" / name).write_bytes(b"no picture")
    mapped = str(tmp_path / "f.parquet")
    assert mocokit.embed(str(run), str(tmp_path / "one"), mapped, map=True, max_skipped=0.9)["rows"] == 1
    monkeypatch.setattr(module, "MOST", 10)
    with pytest.raises(UserError, match="--map: is for 10 images at most, there are 120; leave it out"):
        mocokit.embed(str(run), str(tiny_run.data), str(tmp_path / "g.parquet"), map=True)


def test_parts_without_images_that_were_too_large_are_not_taken_up(run, tmp_path):
    write_images(tmp_path / "images", [f"{n}.png" for n in range(20)])
    write_images(tmp_path / "images", [f"large{n}.png" for n in range(4)], 60, 60)
    output = str(tmp_path / "f.npz")
    with pytest.raises(UserError, match="max-pixels"):
        mocokit.embed(str(run), str(tmp_path / "images"), output, max_pixels=2000)
    with pytest.raises(UserError, match="--precision or --max-pixels left its parts"):
        mocokit.embed(str(run), str(tmp_path / "images"), output)
    assert mocokit.embed(str(run), str(tmp_path / "images"), output, overwrite=True)["rows"] == 24
