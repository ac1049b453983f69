"""mocokit beside its peers and the floor, in turn, in fresh processes: python benchmarks/speed.py --rows b,d

Needs the extra `benchmarks`. What the rows mean and where the floors come from: docs/benchmarks.md. `--quick` runs
every row once with tiny sizes in this process, to see that all of them work; its figures mean nothing.
"""

import argparse
import csv
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIDES = ("peer", "ours", "floor")
RESULTS = Path(__file__).parent / "results"
NARROW = {"backbone": "resnet18_narrow"}
COLUMNS = (
    *("row", "measure", "unit", "n", "peer", "peer_q1", "peer_q3", "ours", "ours_q1", "ours_q3", "floor"),
    *("ratio", "ratio_min", "ratio_max", "share_of_floor", "peer_peak_mib", "ours_peak_mib"),
    *("peer_more", "ours_more", "settings"),
)


@dataclass(frozen=True)
class Row:
    """One line of the table: three functions ``module.name``, and how its settings differ from the command's.

    ``memory`` samples the memory of the whole process tree, which disturbs the timing a little; ``peak`` makes it
    the figure that is compared.
    """

    name: str
    measure: str
    unit: str  # s and MiB: less is better; else more
    peer: str
    ours: str
    floor: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    memory: bool = False
    peak: bool = False

    @property
    def less_is_better(self) -> bool:
        return self.unit in ("s", "MiB")


def rows_of(options: argparse.Namespace) -> list[Row]:
    """All rows; those of (i) depend on the sizes that are asked for."""
    pretrain = {"peer": "speed_peer.pretrain", "ours": "speed_ours.pretrain", "floor": "speed_floor.train"}
    embed = {"peer": "speed_peer.embed", "ours": "speed_ours.embed", "floor": "speed_floor.infer"}
    first = {"peer": "speed_peer.first_step", "ours": "speed_ours.first_step", "floor": "speed_floor.decode"}
    begin = {"steps": 0, "untried": True}
    rows = [
        Row("a-cold", "command to first step, nothing cached", "s", **first, settings=begin),
        Row("a-cached", "command to first step, images cached", "s", **first, settings=begin | {"cached": True}),
        Row("a-cached-check", "the same, with our trials and check of step 0", "s", **first,
            settings=begin | {"cached": True, "untried": False}),
        Row("b", "pretraining, ResNet-18", "images/s", **pretrain),
        Row("c", "pretraining, narrow ResNet-18", "images/s", **pretrain, settings=NARROW),
        *(
            Row(
                f"d-{peer}", f"views on one core, {peer}", "views/s", f"speed_peer.views_{peer}", "speed_ours.views",
                "speed_floor.one_pass", {"device": "cpu", "batch_size": options.view_batch},
            )
            for peer in ("lightly", "torchvision", "kornia")
        ),
        Row("e-fp32", "embedding, ResNet-18", "images/s", **embed),
        Row("e-bf16", "the same, ours in bfloat16", "images/s", **embed, settings={"precision": "bf16"}),
        Row("e-narrow", "embedding, narrow ResNet-18", "images/s", **embed, settings=NARROW),
        Row("f", "linear probe", "s", "speed_peer.probe", "speed_ours.probe", "speed_floor.features_once"),
        Row("g", "kNN", "s", "speed_peer.knn", "speed_ours.knn", "speed_floor.gemm",
            {"images": options.knn_bank, "queries": options.knn_queries}),
        Row("h-pretrain", "peak memory, pretraining", "MiB", **pretrain | {"floor": ""}, memory=True, peak=True),
        Row("h-embed", "peak memory, embedding", "MiB", **embed | {"floor": ""}, memory=True, peak=True),
    ]  # fmt: skip
    asked = {"images": options.counts, "image_size": options.image_sizes, "batch_size": options.batches}
    growth = [(name, int(value)) for name, values in asked.items() for value in values.split(",") if value]
    for name, value in growth:
        settings = {"backbone": options.growth_backbone, name: value}
        for verb, functions in (("pretrain", pretrain), ("embed", embed)):
            measure = f"{verb}, {name.replace('_', ' ')} {value:,}"
            rows.append(
                Row(f"i-{name}-{value}-{verb}", measure, "images/s", **functions, settings=settings, memory=True)
            )
    return rows


# Data ---------------------------------------------------------------------------------------------------------------


class Folders:
    """Image folders of the sizes that the rows ask for, made once from the user's images, or from noise."""

    def __init__(self, data: str | None, scratch: Path) -> None:
        self.data, self.scratch = data, scratch

    def of(self, images: int, queries: int, image_size: int) -> Path:
        """A folder with ``train/`` (``images``) and ``test/`` (``queries``) class folders of JPEG files."""
        folder = self.scratch / f"images-{images}-{queries}-{image_size}"
        if not folder.exists():
            unfinished = folder.with_suffix(".part")
            shutil.rmtree(unfinished, ignore_errors=True)
            self._fill(unfinished / "train", "train", images, image_size)
            self._fill(unfinished / "test", "test", queries, image_size)
            unfinished.rename(folder)
        return folder

    def _fill(self, folder: Path, split: str, count: int, size: int) -> None:
        from PIL import Image

        files = self._files(split)
        for number in range(count):
            name, image = f"class{number % 10}", None
            if files:
                file = files[number * len(files) // count if count <= len(files) else number % len(files)]
                name, image = file.parent.name, Image.open(file)
            path = folder / name / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if image is None:
                made(number, size).save(path, quality=90)
            elif image.size == (size, size):
                shutil.copyfile(file, path)
            else:
                image.convert("RGB").resize((size, size)).save(path, quality=90)

    def _files(self, split: str) -> list[Path]:
        if self.data is None:
            return []
        root = Path(self.data)
        if root.is_file():
            root = self.scratch / "archive"
            if not root.exists():
                unfinished = root.with_suffix(".part")
                with tarfile.open(self.data) as archive:
                    archive.extractall(unfinished, filter="data")
                unfinished.rename(root)
        folders = [root, *(path for path in sorted(root.iterdir()) if path.is_dir())]
        found = next((folder / split for folder in folders if (folder / split).is_dir()), None)
        if found is None:
            raise SystemExit(f"{self.data}: no {split}/ folder in it; give a folder or .tar with train/ and test/")
        return sorted(path for path in found.rglob("*") if path.is_file())


def made(number: int, size: int) -> Any:
    """Smooth noise whose colour hints at one of ten classes."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(number)
    small = draw.integers(0, 128, (8, 8, 3)) + np.random.default_rng(number % 10).integers(0, 128, 3)
    return Image.fromarray(small.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)


def encoder_of(settings: dict[str, Any], scratch: Path) -> str:
    """A file of an untrained encoder; speed does not depend on what it has learned."""
    path = scratch / f"{settings['backbone']}-{settings['image_size']}" / "encoder.safetensors"
    if not path.exists():
        from speed_common import MEAN, STD

        from mocokit.deploy.encoder_file import save_encoder
        from mocokit.model.encoder import Encoder, EncoderSpec

        path.parent.mkdir(parents=True, exist_ok=True)
        spec = EncoderSpec(settings["backbone"], settings["image_size"], 3, MEAN, STD)
        save_encoder(Encoder.create(spec), path, {"seed": 0, "recipe": "none", "data_fingerprint": ""})
    return str(path)


# Measuring ----------------------------------------------------------------------------------------------------------


def work(function: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run one side of a row in this process."""
    from speed_common import Settings

    os.environ["MOCOKIT_CACHE"] = f"{settings['scratch']}/cache"
    module, name = function.split(".")
    result: dict[str, Any] = getattr(importlib.import_module(module), name)(Settings(**settings))
    if settings["device"] == "cuda":
        import torch

        result["gpu_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return result


def measure(row: Row, side: str, settings: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Run one side of a row once, in a fresh process unless it is only to see that it works."""
    cache = Path(settings["scratch"]) / "cache"
    if side == "ours" and row.name.startswith("a-"):
        if not settings["cached"]:
            shutil.rmtree(cache, ignore_errors=True)
        elif not cache.exists():
            measure(row, side, settings | {"cached": False}, quick)
    function = getattr(row, side)
    settings = settings | {"started": time.time()}
    if quick:
        with redirect_stdout(sys.stderr), one_thread_count():
            result = work(function, settings)
    else:
        result = spawn(function, settings, row.memory)
    return result | ({"value": result.get("peak_mib", 0.0)} if row.peak else {})


@contextmanager
def one_thread_count() -> Iterator[None]:
    """Workloads of one core leave the number of threads as it was."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def spawn(function: str, settings: dict[str, Any], memory: bool) -> dict[str, Any]:
    """One workload in a process of its own; its last line on stdout is the result."""
    log = Path(settings["scratch"]) / "last.log"
    command = [sys.executable, __file__, "--worker", function, "--settings", json.dumps(settings)]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        peak = Peak(process.pid) if memory else None
        out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{function} failed:\n{log.read_text()[-3000:]}")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result | ({"peak_mib": peak.stop()} if peak else {})


class Peak:
    """Greatest memory of a process and its descendants: proportional set sizes, so shared pages count once."""

    def __init__(self, pid: int, every: float = 0.2) -> None:
        self.pid, self.every, self.most, self.over = pid, every, 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def stop(self) -> float:
        """Mebibytes."""
        self.over.set()
        self.thread.join()
        return self.most

    def _watch(self) -> None:
        while not self.over.wait(self.every):
            self.most = max(self.most, sum(map(_pss, _tree(self.pid))) / 1024)


def _tree(pid: int) -> list[int]:
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (OSError, ValueError):
        children = []
    return [pid, *(each for child in children for each in _tree(child))]


def _pss(pid: int) -> int:
    try:
        return int(re.findall(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[0])
    except (OSError, IndexError):
        return 0


def run(row: Row, settings: dict[str, Any], repeats: int, quick: bool, sides: Sequence[str] = SIDES) -> dict[str, Any]:
    """The sides of a row in turn, ``repeats`` times over: a line of the table."""
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides if getattr(row, side)}
    for repeat in range(repeats):
        for side, done in results.items():
            own = settings
            if side == "floor" and "ours" in results:  # held against the same arithmetic
                own = own | {"precision": results["ours"][-1].get("precision", settings["precision"])}
            done.append(measure(row, side, own, quick))
            print(f"{row.name} {side} {repeat + 1}/{repeats}: {done[-1]}", file=sys.stderr, flush=True)
    return summary(row, settings, results)


def summary(row: Row, settings: dict[str, Any], results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, quartiles, ratio (above 1: mocokit is better) and the share of what the floor allows."""
    values = {side: [result["value"] for result in done] for side, done in results.items()}
    line: dict[str, Any] = {"row": row.name, "measure": row.measure, "unit": row.unit}
    line["n"] = len(next(iter(values.values())))
    for side, own in values.items():
        q1, median, q3 = statistics.quantiles(own, n=4, method="inclusive") if len(own) > 1 else own * 3
        line |= {side: median, f"{side}_q1": q1, f"{side}_q3": q3}
    if "peer" in values and "ours" in values:
        pairs = zip(values["peer"], values["ours"], strict=True)
        ratios = [better(ours, peer, row.less_is_better) for peer, ours in pairs]
        line |= {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
    if "floor" in values and "ours" in values:
        line["share_of_floor"] = better(line["ours"], line["floor"], row.less_is_better)
    for side in results.keys() - {"floor"}:
        line[f"{side}_peak_mib"] = max((r["peak_mib"] for r in results[side] if "peak_mib" in r), default="")
        line[f"{side}_more"] = json.dumps({k: _short(v) for k, v in results[side][-1].items() if k != "value"})
    left_out = ("data", "scratch", "started", "encoder", "fork")
    told = {k: v for k, v in settings.items() if k not in left_out}
    if row.name == "f":  # whose accuracy depends on it
        told["encoder"] = Path(settings["encoder"]).parent.name
    line["settings"] = json.dumps(told)
    return {name: _short(line.get(name, "")) for name in COLUMNS}


def better(ours: float, other: float, less_is_better: bool) -> float:
    """How many times as good."""
    above, below = (other, ours) if less_is_better else (ours, other)
    return above / below if below else float("nan")


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


# Table --------------------------------------------------------------------------------------------------------------


def save(path: Path, lines: list[dict[str, Any]]) -> None:
    """Add lines to a CSV file; those of the same row and settings are replaced."""
    kept: dict[tuple[str, str], dict[str, Any]] = {}
    if path.exists():
        with path.open(newline="") as file:
            kept = {(line["row"], line["settings"]): line for line in csv.DictReader(file)}
    kept |= {(line["row"], line["settings"]): line for line in lines}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(kept.values(), key=lambda line: line["row"]))
    temporary.replace(path)


def table(lines: list[dict[str, Any]]) -> str:
    """The lines for a terminal."""
    head = f"{'row':<28} {'unit':<9} {'peer':>9} {'ours':>9} {'ratio':>7} {'(min-max)':>14} {'of floor':>9}  n"
    text = [head]

    def shown(value: Any, form: str) -> str:
        return "" if value == "" else form.format(value)

    for line in lines:
        spread = "" if line["ratio"] == "" else f"({line['ratio_min']:.2f}-{line['ratio_max']:.2f})"
        peer, ours = (shown(line[side], "{:.4g}") for side in ("peer", "ours"))
        ratio, share = shown(line["ratio"], "{:.2f}x"), shown(line["share_of_floor"], "{:.0%}")
        text.append(
            f"{line['row']:<28} {line['unit']:<9} {peer:>9} {ours:>9} {ratio:>7} {spread:>14} {share:>9}  {line['n']}"
        )
    return "\n".join(text)


def machine(device: str) -> str:
    """A name of the device and the versions that matter, for a file."""
    if device == "cuda":
        import torch

        name = torch.cuda.get_device_name()
    else:
        name = f"cpu{os.cpu_count()} {_cpu()}"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{slug}-torch{version('torch')}-lightly{version('lightly')}"


def _cpu() -> str:
    try:
        model = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)[0]
    except (OSError, IndexError):
        model = platform.processor() or platform.machine()
    return re.sub(r"\((R|TM)\)|CPU|Processor|@.*", "", model, flags=re.I)


# Command ------------------------------------------------------------------------------------------------------------

QUICK = {
    "images": 24, "queries": 10, "knn_bank": 60, "knn_queries": 20, "batch_size": 8, "view_batch": 8, "steps": 1,
    "warmup": 1, "workers": 0, "probe_epochs": 1, "repeats": 1, "counts": "24", "image_sizes": "",
    "batches": "", "image_size": 32,
}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="letters or whole names, separated by commas; default all")
    parser.add_argument("--sides", default=",".join(SIDES), help="of each row, separated by commas; default all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one process: does every row work?")
    parser.add_argument("--list", action="store_true", help="list the rows and stop")
    parser.add_argument("--data", default=os.environ.get("MOCOKIT_CIFAR10"), help="folder or .tar with train/, test/")
    parser.add_argument("--scratch", help="folder for images, caches and runs, kept; default a temporary one")
    parser.add_argument("--out", type=Path, help="CSV file; default named by the machine, in benchmarks/results")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of mocokit; default its own choice")
    parser.add_argument("--backbone", choices=("resnet18_cifar", "resnet18_narrow"), default="resnet18_cifar")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--knn-bank", type=int, default=50_000)
    parser.add_argument("--knn-queries", type=int, default=10_000)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--view-batch", type=int, default=512, help="images at once in (d)")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--probe-epochs", type=int, default=100, help="of the notebook's classifier")
    parser.add_argument("--encoder", help="of a run, RUN/encoder.safetensors, for (f); default an untrained one")
    parser.add_argument("--growth-backbone", default="resnet18_narrow")
    parser.add_argument("--counts", default="1000,5000,20000,50000", help="image counts of (i)")
    parser.add_argument("--image-sizes", default="32,64,128,224", help="image sizes of (i)")
    parser.add_argument("--batches", default="64,256,512", help="batch sizes of (i)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    given, options = parser.parse_args(), parser.parse_args()
    if given.quick:
        for name, value in QUICK.items():
            if getattr(given, name) == parser.get_default(name):
                setattr(options, name, value)
    return options


def chosen(rows: list[Row], names: str) -> list[Row]:
    """The rows whose name or letter is in ``names``."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [w for w in wanted if not any(w in (row.name, row.name[0]) for row in rows)]:
        raise SystemExit(f"--rows {unknown[0]}: no such row; --list shows them")
    return [row for row in rows if not wanted or row.name in wanted or row.name[0] in wanted]


def settings_of(row: Row, options: argparse.Namespace, scratch: Path, folders: Folders) -> dict[str, Any]:
    """What the workloads of a row are given."""
    names = ("device", "precision", "backbone", "images", "queries", "image_size", "batch_size", "steps")
    names += ("warmup", "workers", "probe_epochs")
    settings = {name: getattr(options, name) for name in names} | {"cached": False, "untried": False}
    settings |= row.settings
    if row.name != "g":  # which needs no images
        sizes = (settings["images"], settings["queries"], settings["image_size"])
        settings["data"] = str(folders.of(*sizes))
        if settings["batch_size"] > settings["images"]:
            raise SystemExit(f"{row.name}: batches of {settings['batch_size']} out of {settings['images']} images")
    encoder = ""
    if row.name == "f" and options.encoder:
        encoder = str(Path(options.encoder).resolve())
    elif row.name[0] in "ef" or row.name.endswith("-embed"):
        encoder = encoder_of(settings, scratch)
    return {
        "data": "",
        **settings,
        "scratch": str(scratch),
        "started": 0.0,
        "encoder": encoder,
        "fork": not options.quick,
    }


def main() -> int:
    options = parse()
    if options.worker:
        with redirect_stdout(sys.stderr):
            result = work(options.worker, json.loads(options.settings))
        print(json.dumps(result))
        return 0
    rows = chosen(rows_of(options), options.rows)
    if options.list:
        print("\n".join(f"{row.name:<28} {row.measure} ({row.unit})" for row in rows))
        return 0
    import torch

    peers = ["lightly", *(["kornia"] if any(row.name == "d-kornia" for row in rows) else [])]
    if missing := [name for name in peers if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"{missing[0]} is missing: pip install 'mocokit[benchmarks]'")
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    out = options.out or RESULTS / f"speed-{machine(options.device)}.csv"
    lines, failed, sides = [], [], options.sides.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(options.scratch or temporary).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        folders = Folders(options.data, scratch)
        for row in rows:
            try:
                lines.append(
                    run(row, settings_of(row, options, scratch, folders), options.repeats, options.quick, sides)
                )
            except RuntimeError as error:  # of one row; the others are still worth their time
                failed.append(row.name)
                print(f"{row.name}: {error}", file=sys.stderr)
                continue
            if not options.quick or options.out:
                save(out, lines[-1:])
    print(table(lines))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
