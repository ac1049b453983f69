"""Damage every kind of file that mocokit reads back: what comes of it is a result or a UserError of one line.

A campaign: python tools/fuzz.py --examples 5000 --seed 7. The tests run the same with few examples and a fixed seed.
"""

import argparse
import copy
import csv
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import mocokit
from mocokit.commands.finetune import _is_whole, _lines
from mocokit.config import FIELDS
from mocokit.data.store import open_store
from mocokit.deploy.encoder_file import _digest, read_header
from mocokit.deploy.feature_file import METADATA_KEY, feature_table, write_features
from mocokit.deploy.loading import load
from mocokit.errors import UserError
from mocokit.model.digest import digest
from mocokit.options import load_config
from mocokit.preview import read_metrics
from mocokit.resolved import differences
from mocokit.rundir import RunDirectory
from mocokit.training.checkpoint import DIGEST, Checkpoints
from mocokit.training.log import MetricsFile, read_rows
from mocokit.training.loop import Trainer, create_fabric
from mocokit.training.pretraining import COLUMNS, Pretraining

Draw = Callable[[Any], Any]  # of a hypothesis strategy
Attempt = Callable[[Draw, Path], Callable[[], object]]  # writes a damaged file into a folder; returns what reads it

ODD: list[Any] = [
    *(None, True, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, math.nan, math.inf, "", "x", "1", "\0", "\udcff"),
    *("a" * 1000, "../x", [], {}, [[]], [1, 2, 3], {"a": 1}, [None], "2026-11-27", "nan", "1e999"),
]  # fmt: skip


def changed(draw: Draw, value: Any, odd: list[Any] = ODD) -> Any:
    """A copy of nested dictionaries and lists with up to three entries gone, doubled, renamed or of another type."""
    holder = [copy.deepcopy(value)]
    for _ in range(draw(st.integers(0, 3))):
        slots = list(_slots(holder))
        parent, key = slots[draw(st.integers(0, len(slots) - 1))]
        action = draw(st.sampled_from(["gone", "odd", "renamed", "inside a list", "another's value"]))
        if action == "gone" and parent is not holder:
            del parent[key]
        elif action == "renamed" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["", "x", "step", "9"]))] = parent.pop(key)
        elif action == "inside a list":
            parent[key] = [parent[key]]
        elif action == "another's value":
            other, name = slots[draw(st.integers(0, len(slots) - 1))]
            with suppress(LookupError):  # it has been renamed
                parent[key] = copy.deepcopy(other[name])
        else:
            parent[key] = copy.deepcopy(draw(st.sampled_from(odd)))
    return holder[0]


def _slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value inside another."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _slots(value[key])


def damaged(draw: Draw, content: bytes) -> bytes:
    """Cut, with bits flipped, a stretch replaced or doubled, or something else altogether."""
    data = bytearray(content)
    start, stop = sorted(draw(st.integers(0, len(data))) for _ in range(2))
    action = draw(st.sampled_from(["cut", "flip", "flip", "zeros", "random", "double", "gone", "other"]))
    if action == "cut":
        del data[start:]
    elif action == "flip":
        for _ in range(draw(st.integers(1, 8))):
            data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif action == "zeros":
        data[start:stop] = bytes(stop - start)
    elif action == "random":
        data[start : start + 40] = draw(st.binary(max_size=40))
    elif action == "double":
        data[start:start] = data[start:stop]
    elif action == "gone":
        del data[start:stop]
    else:
        return bytes(draw(st.binary(max_size=100)))
    return bytes(data)


def changed_json(draw: Draw, value: Any) -> bytes:
    """JSON of another structure, damaged, or too deep or long to be read."""
    kind = draw(st.sampled_from(["changed", "changed", "changed", "damaged", "deep", "long"]))
    if kind == "deep":
        return b"[" * 100_000
    if kind == "long":
        return b'{"a": ' + b"9" * 5000 + b"}"
    if kind == "damaged":
        return damaged(draw, json.dumps(value).encode())
    return json.dumps(changed(draw, value)).encode()


# Kinds of files --------------------------------------------------------------------------------------------


def checkpoints(run: Path) -> Attempt:
    """``last.ckpt``; with the digest of what was changed, too, so that all of it is looked at."""
    config = RunDirectory(run).read_config().config
    trainer = Trainer(Pretraining(config, read_header(run)[0]), create_fabric("cpu", "fp32"))
    state = torch.load(RunDirectory(run).checkpoint, weights_only=True)
    odd = [*ODD, torch.zeros(0), torch.full((2, 2), math.nan), torch.ones(3, dtype=torch.half)]

    def attempt(draw: Draw, folder: Path) -> Callable[[], object]:
        path = folder / "last.ckpt"
        if draw(st.booleans()):
            path.write_bytes(damaged(draw, RunDirectory(run).checkpoint.read_bytes()))
        else:
            other = changed(draw, state, odd)
            if isinstance(other, dict) and draw(st.booleans()):
                other.pop(DIGEST, None)
                other[DIGEST] = digest(other)
            torch.save(other, path)
        return lambda: Checkpoints(path, 1e9, lambda step: None).restore(trainer)

    return attempt


def encoders(run: Path) -> Attempt:
    """``encoder.safetensors``, with other weights or another header, maybe under a digest that fits."""
    whole = RunDirectory(run).encoder
    with safe_open(whole, "pt") as file:
        header = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    values = {name: json.loads(header[name]) for name in ("spec", "origin")} | {"classes": []}
    image = np.zeros((8, 8, 3), np.uint8)

    def attempt(draw: Draw, folder: Path) -> Callable[[], object]:
        path, own = folder / "encoder.safetensors", dict(weights)
        if draw(st.integers(0, 3)) == 0:
            path.write_bytes(damaged(draw, whole.read_bytes()))
        else:
            other = changed(draw, values)
            texts = other if isinstance(other, dict) else {}
            new = {str(name).replace("\udcff", "?"): json.dumps(value) for name, value in texts.items()}
            new["format"] = draw(st.sampled_from([header["format"]] * 9 + ["mocokit-encoder-3"]))
            if draw(st.booleans()):
                name = draw(st.sampled_from(sorted(own)))
                change = draw(
                    st.sampled_from([torch.Tensor.half, torch.zeros_like, lambda t: t.reshape(-1)[:1].clone()])
                )
                own[name] = change(own[name])
            if draw(st.booleans()):
                new["digest"] = _digest(new, own)
            save_file(own, path, new)

        def use() -> None:
            spec, _ = read_header(path)
            encoder = load(path)
            if spec.image_size <= 64:
                encoder.embed(image)

        return use

    return attempt


YAML = [
    *("a: !!int x", "a: !!python/object:os.system x", "a: 2026-99-99", "lr: 2026-01-01", "[" * 5000, "a: {" * 5000),
    *("steps: " + "9" * 5000, "&a [*a]", "a: *b", "? [1]\n: 2", "- 1", "", "\0", "a:\tb", "? {a: 1}\n: 2", "lr: .nan"),
    "a: &a [x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)),
]  # fmt: skip


def configurations(run: Path) -> Attempt:
    """``config.yaml``."""
    text = RunDirectory(run).config.read_text(encoding="utf-8")
    values = yaml.safe_load(text)

    def attempt(draw: Draw, folder: Path) -> Callable[[], object]:
        other = RunDirectory(folder)
        kind = draw(st.sampled_from(["changed", "changed", "damaged", "line", "alone"]))
        if kind == "changed":
            content = yaml.safe_dump(changed(draw, values)).encode(errors="surrogatepass")
        elif kind == "damaged":
            content = damaged(draw, text.encode())
        else:
            content = ((text + "\n") * (kind == "line") + draw(st.sampled_from(YAML))).encode()
        other.config.write_bytes(content)

        def use() -> None:
            for read in (
                lambda: differences({"lr": 1.0}, {}, other.read_config()),
                lambda: load_config(str(other.config), FIELDS),
            ):
                with suppress(UserError):
                    read()

        return use

    return attempt


FIGURES = {"top1": 0.5, "top5": 1.0, "ci95": [0.4, 0.6], "best_epoch": 1, "epochs": 2, "train_s": 1.5}
FINETUNED = {
    "protocol": "finetune",
    "encoder": FIGURES,
    "random_init": FIGURES,
    "directory": "d",
    "images": {"test": 3},
}


def results(run: Path) -> Attempt:
    """``results/VERB.json``; one of another structure counts as none."""
    pretrained = json.loads(RunDirectory(run).result("pretrain").read_text())

    def attempt(draw: Draw, folder: Path) -> Callable[[], object]:
        other = RunDirectory(folder)
        other.path.joinpath("results").mkdir()
        other.result("finetune").write_bytes(changed_json(draw, FINETUNED))
        other.result("pretrain").write_bytes(changed_json(draw, pretrained))
        other.data.write_bytes(changed_json(draw, {"fingerprint": "a", "images": 3}))

        def use() -> None:
            if _is_whole(found := other.read_result("finetune")):
                assert found is not None
                _lines(found, "data")
            json.dumps([found, other.read_result("pretrain"), other.read_fingerprint()])

        return use

    return attempt


def rows(run: Path) -> Attempt:
    """``metrics.csv``."""
    text = RunDirectory(run).metrics.read_text(encoding="utf-8")
    table = list(csv.reader(io.StringIO(text)))
    odd = ["", "x", "nan", "-1", "1e999", "9" * 5000, '"', "1,2", "\0", "é", "a" * 200_000, "step", "0x1"]

    def attempt(draw: Draw, folder: Path) -> Callable[[], object]:
        path = RunDirectory(folder).metrics
        if draw(st.booleans()):
            path.write_bytes(damaged(draw, text.encode()))
        else:
            other = changed(draw, table, odd)
            lines = [line if isinstance(line, list) else [line] for line in other if other]
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(lines)

        def use() -> None:
            for read in (lambda: read_rows(path, "loss", "step"), lambda: read_metrics(folder)):
                with suppress(UserError):
                    read()
            MetricsFile(path, 5, COLUMNS)

        return use

    return attempt


TYPES: list[tuple[Any, Any]] = [  # of columns, each with a value
    *((pa.int64(), 1), (pa.uint64(), 2**64 - 1), (pa.int64(), -1), (pa.bool_(), True), (pa.float64(), math.nan)),
    *((pa.string(), "x"), (pa.large_string(), ""), (pa.string(), None), (pa.binary(), b"x"), (pa.null(), None)),
    *((pa.list_(pa.float32()), [1.0, 2.0]), (pa.list_(pa.list_(pa.int8())), [[1]]), (pa.timestamp("ns"), 1)),
    *((pa.struct([("bytes", pa.int64())]), {"bytes": 3}), (pa.struct([("bytes", pa.binary())]), {"bytes": b""})),
    *((pa.struct([("bytes", pa.list_(pa.binary()))]), {"bytes": [b"a"]}), (pa.list_(pa.binary()), [b"a"])),
    *((pa.map_(pa.string(), pa.int64()), [("a", 1)]), (pa.list_(pa.float16(), 2), [1.0, 2.0]), (pa.decimal128(5), 1)),
    *((pa.list_(pa.float32(), 0), []), (pa.dictionary(pa.int8(), pa.string()), "x"), (pa.date32(), 1)),
]


def changed_table(draw: Draw, table: pa.Table, names: list[str], metadata: dict[bytes, bytes]) -> pa.Table:
    """Columns of any type, under the usual names, doubled or gone, and with other metadata."""
    columns = dict(enumerate(zip(table.column_names, table.columns, strict=True)))
    for _ in range(draw(st.integers(0, 3))):
        kind, value = draw(st.sampled_from(TYPES))
        values = [None if draw(st.integers(0, 9)) == 0 else value for _ in range(len(table))]
        columns[draw(st.integers(0, 4))] = draw(st.sampled_from(names)), pa.array(values, kind)
    if draw(st.integers(0, 4)) == 0:
        columns.pop(draw(st.sampled_from(sorted(columns))))
    order = draw(st.permutations(sorted(columns)))
    other = pa.table([columns[i][1] for i in order], names=[columns[i][0] for i in order])
    return other.replace_schema_metadata(metadata)


def write_table(draw: Draw, table: pa.Table, path: Path) -> None:
    """As Parquet, sometimes damaged."""
    pq.write_table(table, path, row_group_size=draw(st.sampled_from([1, 3, 1000])))
    if draw(st.integers(0, 2)) == 0:
        path.write_bytes(damaged(draw, path.read_bytes()))


def features(run: Path) -> Attempt:
    """Feature files of each format, which search reads."""
    matrix = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    table = feature_table(matrix, {"path": list("abcdef"), "split": ["train"] * 6, "label": ["x", None] * 3})
    metadata = {"run": str(run), "data": str(run), "spec": read_header(run)[0].to_dict(), "data_fingerprint": "a"}

    def attempt(draw: Draw, folder: Path) -> Callable[[], object]:
        path = folder / draw(st.sampled_from(["f.parquet", "f.parquet", "f.npz", "f.npy"]))
        write_features(path, [table], 6, metadata)
        text = changed_json(draw, metadata | {"format": "mocokit-features-1"})
        victim = draw(st.sampled_from(sorted(folder.iterdir())))
        if path.suffix == ".parquet" and draw(st.booleans()):
            names = ["path", "split", "label", "feature", "predicted"]
            write_table(draw, changed_table(draw, table, names, {METADATA_KEY: text}), path)
        elif victim.suffix == ".json":
            victim.write_bytes(text)
        elif path.suffix == ".npz" and draw(st.booleans()):
            arrays = {
                "feature": matrix,
                "metadata": np.array(text.decode(errors="replace")),
                "path": np.array(list("ab")),
            }
            np.savez(path, **{n: a for n, a in arrays.items() if draw(st.booleans())})
        elif path.suffix == ".npy" and draw(st.booleans()):
            np.save(path, matrix.astype(draw(st.sampled_from(["c8", "M8[s]", "S3", "f2", "?", ">f8", "u8"]))))
        else:
            victim.write_bytes(damaged(draw, victim.read_bytes()))
        montage = str(folder / "m.png") if draw(st.integers(0, 3)) == 0 else None
        return lambda: mocokit.search(str(path), queries=("0", "5"), k=2, duplicates=0.0, montage=montage)

    return attempt


def _png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def tables(run: Path) -> Attempt:
    """Parquet files of images."""
    images = [{"bytes": _png(number), "path": f"{number}.png"} for number in range(6)]
    table = pa.table({"image": images, "label": pa.array([0, 1] * 3)})
    notes = {"info": {"features": {"label": {"names": ["a", "b"]}}}}

    def attempt(draw: Draw, folder: Path) -> Callable[[], object]:
        path = folder / draw(st.sampled_from(["data.parquet", "test.parquet"]))
        metadata = {b"huggingface": changed_json(draw, notes)} if draw(st.booleans()) else {}
        metadata |= {b"x": b"y" * 2**20} if draw(st.integers(0, 9)) == 0 else {}
        names = ["image", "label", "labels", "jpg", "a.b", "class"]
        write_table(draw, changed_table(draw, table, names, metadata), path)
        cache = folder / "cache"
        cache.mkdir()
        return lambda: open_store(str(path), image_size=8, workers=0, max_skipped=1.0, cache=cache)

    return attempt


def cached(run: Path) -> Attempt:
    """What is kept of decoded images; a damaged entry is built again."""
    images = pa.table({"image": [{"bytes": _png(number)} for number in range(6)], "label": pa.array([0, 1] * 3)})

    def attempt(draw: Draw, folder: Path) -> Callable[[], object]:
        pq.write_table(images, folder / "data.parquet")

        def use() -> None:
            store = open_store(str(folder / "data.parquet"), image_size=8, workers=0, cache=folder)
            assert "6 train images, colour" in store.summary(), store.summary()
            train = store.splits["train"]
            assert (train.batch(range(6)).shape, len(train.names)) == ((6, 3, 8, 8), 6)

        use()
        path = draw(st.sampled_from(sorted(folder.glob("images/*/*"))))
        if path.suffix == ".json" and draw(st.booleans()):
            digest, _, text = path.read_text().partition("\n")
            path.write_bytes(f"{digest}\n".encode() + changed_json(draw, json.loads(text)))
        else:
            path.write_bytes(damaged(draw, path.read_bytes()))
        return use

    return attempt


KINDS: dict[str, Callable[[Path], Attempt]] = {
    "checkpoint": checkpoints,
    "encoder": encoders,
    "config": configurations,
    "result": results,
    "metrics": rows,
    "features": features,
    "parquet": tables,
    "cache": cached,
}


def campaign(kind: str, run: Path, examples: int, number: int) -> dict[str, int]:
    """Read so many damaged files of a kind, seeded by ``number``; how many were taken and refused.

    Anything but a UserError of one line is raised, of the smallest damage that was found to cause it.
    """
    attempt, ended = KINDS[kind](run), {"taken": 0, "refused": 0}

    @seed(number)
    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck),
              phases=(Phase.generate, Phase.shrink))  # fmt: skip
    @given(st.data())
    def read(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as folder:
            use = attempt(lambda strategy: data.draw(strategy), Path(folder))
            message = ""
            try:
                use()
            except UserError as error:
                message = str(error)
            ended["refused" if message else "taken"] += 1
            assert "\n" not in message, message
            assert len(message) < 1000, message

    read()
    return ended


def main() -> None:
    """A tiny run, then a campaign over each kind of file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, help="damaged files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        tiny = {"backbone": "resnet18_narrow", "image_size": 8, "batch_size": 8, "queue_size": 16, "limit": 40}
        mocokit.pretrain("digits", out=str(run), epochs=2, log_every=1, device="cpu", workers=0, **tiny)
        for kind in options.kind or KINDS:
            print(kind, campaign(kind, run, options.examples, options.seed), flush=True)


if __name__ == "__main__":
    main()
