"""What a user meets on the command line: help, exit codes, one clear line for each mistake, JSON on stdout."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from mocokit.cli import SWITCHES, main
from mocokit.config import FIELDS, VERBS
from mocokit.options import fields_of, flag, grouped
from mocokit.recipes import recipe_names
from tests.helpers import encode, noise, write_images
from tests.tiny_runs import FLAGS, TinyRun, tiny_data

HEAVY = ("torch", "torchvision", "numpy", "PIL", "timm", "sklearn", "pytorch_lightning", "lightning", "rich")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(tiny_data(tmp_path_factory.mktemp("cli")))


def refused(capfd, *arguments: object) -> str:
    """Run a command that must fail by the user's fault; returns its one line."""
    assert main([str(a) for a in arguments]) == 2
    stdout, stderr = capfd.readouterr()
    *before, line = stderr.splitlines()
    assert stdout == ""
    assert line.startswith("mocokit: ")
    assert len(line) < 600
    assert not any("mocokit: " in earlier or "Traceback" in earlier for earlier in before)
    return line


def test_a_list_of_files_is_refused_with_the_way_out(tmp_path, capfd):
    root = write_images(tmp_path, ["1.png", "2.png"])
    assert "name their folder" in refused(capfd, "pretrain", root / "1.png", root / "2.png", "--out", tmp_path / "run")


# Help ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["pretrain", "--help"], ["knn", "--help"], ["pretrain", "x", "--epochs=0"]]
)
def test_nothing_heavy_is_imported_on_the_way_to_an_answer(arguments):
    program = f"""
import sys
from mocokit.cli import main
try:
    main({arguments!r})
except SystemExit:
    pass
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_folder_whose_name_begins_like_an_option(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-x").mkdir()
    assert "write ./-x" in refused(capfd, "pretrain", "--", "-x")


def test_without_stderr_nothing_is_told_on_stdout(data):
    program = "import sys; sys.stderr = None; from mocokit.cli import main; sys.exit(main(['cache', '--json']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert json.loads(done.stdout)


def test_a_lost_reader_does_not_end_the_work(data, tmp_path):
    """Of what is told, as a log viewer that dies, or of the result, as `head`."""
    pretrain = f"pretrain {data} --out {tmp_path / 'run'} --steps 3 --no-evaluate --no-report --image-size 8"
    for command, given in ((f"{pretrain} 2>/dev/full", 0), (f"{pretrain} 2>/dev/full --json | true", 0)):
        shell = f"set -o pipefail; {sys.executable} -m mocokit {command}"
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (given, "")
    assert (tmp_path / "run" / "encoder.safetensors").exists()
    shell = f"{sys.executable} -m mocokit pretrain {data} --print_config >/dev/full"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "mocokit: the result can't be written to stdout: No space left on device\n"


def test_sigterm_is_told_as_an_interrupt_is(tmp_path):
    program = """
import os, signal, sys, mocokit.commands.cache
from mocokit import cli
def cache(**_):
    os.kill(os.getpid(), signal.SIGTERM)
mocokit.commands.cache.cache = cache
before = signal.getsignal(signal.SIGTERM)
code = cli.main(["cache"])
assert signal.getsignal(signal.SIGTERM) == before
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "mocokit: interrupted\n")


def test_an_ignored_sigterm_stays_ignored():
    program = """
import os, signal, mocokit.commands.cache
from mocokit import cli
signal.signal(signal.SIGTERM, signal.SIG_IGN)
mocokit.commands.cache.cache = lambda **_: os.kill(os.getpid(), signal.SIGTERM)
assert cli.main(["cache"]) == 0
assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_can_not_be_looked_at_is_told(tiny_run, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    long = "x" * 300
    for command in (
        ["knn", long, "digits"],
        ["report", long, "digits"],
        ["export", tiny_run.path, "--format", "timm", "-o", long],
        ["embed", tiny_run.path, tiny_run.data, "-o", f"{long}.npz"],
        ["search", f"{long}.npz", "0"],
        ["study", tiny_run.data, "--out", long],
    ):
        assert "File name too long" in refused(capfd, *command)
    denied = PermissionError(13, "Permission denied", "closed/run")  # which root never sees
    monkeypatch.setattr("mocokit.commands.knn.knn", Mock(side_effect=denied))
    assert refused(capfd, "knn", "closed/run", "digits") == "mocokit: closed/run: Permission denied"
    monkeypatch.setattr("mocokit.commands.knn.knn", Mock(side_effect=OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        main(["knn", "run", "digits"])


def test_what_pytorch_needs_around_it(tmp_path, monkeypatch, capfd):
    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "gettempdir", nowhere)
        assert "set TMPDIR" in refused(capfd, "export", tmp_path, "--format", "timm")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "the current folder is gone" in refused(capfd, "export", tmp_path, "--format", "timm")


def test_python_m_mocokit_is_the_command():
    done = subprocess.run([sys.executable, "-m", "mocokit", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("mocokit ")


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_and_explains_every_option(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, option in fields_of(VERBS[verb]).items():
        assert f" {name.upper() if option.positional else flag(name)}" in text
        assert (f"--no-{flag(name)[2:]} " in text) == (option.kind is bool)
        assert option.help in text
    for extra in ["--json", "--config", "--print_config"]:
        assert extra in text
    for switch, (switch_help, verbs) in SWITCHES.items():
        assert (f"{flag(switch)} {switch_help}" in text) == (verb in verbs)


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_in_groups_after_what_people_reach_for(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    fields, place = fields_of(VERBS[verb]), ""
    listed = {}
    for line in capsys.readouterr().out.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            place = {"positional arguments": "", "options": ""}.get(line[:-1], line[:-1])
        elif line.startswith("  -"):
            listed |= {word.split(" ")[0]: place for word in line.strip().split(", ") if word.startswith("-")}
    assert {n: listed[flag(n)] for n, o in fields.items() if not o.positional} == {
        n: o.group for n, o in fields.items() if not o.positional
    }
    groups = list(dict.fromkeys(listed.values()))  # in the order of help
    assert groups[0] == ""
    assert sorted(listed.values(), key=groups.index) == list(listed.values())  # each in one piece
    assert listed["--json"] == ""


def test_help_of_pretrain_begins_with_a_dozen_options_and_names_recipes(capsys):
    assert len([option for option in grouped(FIELDS)[""] if not option.positional]) <= 12
    assert {option.name for option in grouped(FIELDS)[""]} >= {"data", "out", "recipe", "epochs", "time_budget", "seed"}
    for verb in VERBS:
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        head = " ".join(capsys.readouterr().out.partition("positional arguments:")[0].split())
        for name in ["auto", *recipe_names()]:
            assert (f" {name}" in head) == (verb in ("pretrain", "study"))
        assert ("What is not given comes from the recipe, or is derived" in head) == (verb == "pretrain")


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_lists_the_verbs_and_so_does_mocokit_alone(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(f" {verb} {config.__doc__}" in text for verb, config in VERBS.items())


# Mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrian"], ["'pretrian'", "pretrain"]),
        (["pretrain"], ["no DATA given", "what to learn from: digits"]),
        (["pretrain", ""], ["--data: is empty"]),
        (["pretrain", "DATA", "--epoch", "3"], ["--epoch", "did you mean --epochs?"]),
        (["pretrain", "DATA", "--bathc-size=3"], ["did you mean --batch-size?"]),
        (["pretrain", "DATA", "more"], ["unknown argument more"]),
        (["pretrain", "DATA", "--epochs"], ["--epochs", "expected one argument"]),
        (["pretrain", "DATA", "--epochs", "three"], ["--epochs", "'three'"]),
        (["pretrain", "DATA", "--epochs", "0", "--lr", "nan"], ["--epochs: 0 is too small", "--lr: expected"]),
        (["pretrain", "DATA", "--lr", "1e60"], ["--lr: 1e+60 is too large"]),
        (["pretrain", "DATA", "--histograms", "maybe"], ["unknown argument maybe"]),
        (["pretrain", "DATA", "--histograms", "false"], ["unknown argument false", "--no-NAME"]),
        (["pretrain", "DATA", "--histograms=false"], ["--histograms/--no-histograms: takes no value", "'false'"]),
        (["pretrain", "DATA", "--device", "gpu"], ["'gpu' is not one of cpu, cuda, mps"]),
        (["pretrain", "DATA", "--time-budget", "soon"], ["'soon' is not a time", "90s"]),
        (["pretrain", "DATA", "--time-budget", "1m", "--epochs", "2"], ["exclude each other"]),
        (["pretrain", "DATA", "--print_config", "--epochs", "0"], ["--epochs: 0 is too small"]),
        (["pretrain", "DATA", "--config", "missing.yaml"], ["--config missing.yaml", "No such file"]),
        (["pretrain", "DATA", "--config", "TEXT"], ["--config", "option: value"]),
        (["pretrain", "DATA", "--config", "DAMAGED"], ["--config", "not valid YAML"]),
        (["pretrain", "DATA", "--config", "UNKNOWN"], ["--config", "did you mean 'epochs'?"]),
        (["pretrain", "DATA", "--config", "DATA"], ["--config", "directory"]),
        (["pretrain", "DATA", "--recipe", "moco-v9"], ["no such recipe", "moco-v2-cifar10"]),
        (["pretrain", "DATA", "--recipe", "missing.yaml"], ["--recipe missing.yaml", "No such file"]),
        (["pretrain", "nowhere/at/all"], ["no such data", "a folder of images"]),
        (["pretrain", "EMPTY"], ["no images in"]),
        (["pretrain", "TEXT"], ["neither a folder nor an archive"]),
        (["knn"], ["knn: no RUN given", "run directory"]),
        (["knn", "RUN"], ["no DATA given"]),
        (["embed", "RUN", "DATA"], ["no --output given", ".parquet"]),
        (["finetune", "--from-scratch"], ["no RUN given"]),
        (["knn", "nowhere", "DATA"], ["nowhere: no encoder here", "run directory"]),
        (["knn", "DATA", "DATA"], ["no encoder here"]),
        (["knn", "DATA", "DATA", "--k", "0"], ["--k: 0 is too small"]),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else None,
)  # fmt: skip
def test_a_mistake_is_one_clear_line_and_nothing_else(arguments, words, data, tmp_path, capfd):
    places = {"DATA": data, "EMPTY": str(tmp_path / "empty"), "TEXT": str(tmp_path / "text.txt")}
    (tmp_path / "empty").mkdir()
    for name, text in (("text", "just words"), ("damaged", "a: ["), ("unknown", "epoch: 3")):
        path = tmp_path / f"{name}.txt"
        path.write_text(text)
        places[name.upper()] = str(path)
    line = refused(capfd, *(places.get(a, a) for a in arguments))
    assert [word for word in words if word not in line] == []


def test_folders_without_enough_images(tmp_path, capfd):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("hello")
    assert "no images in" in refused(capfd, "pretrain", tmp_path / "notes")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jpg").write_text("hello")
    line = refused(capfd, "pretrain", tmp_path / "text")
    assert "1 of 1 images" in line
    assert "a.jpg: not an image" in line
    write_images(tmp_path / "two", ["a.png", "b.png"])
    assert "2 usable training images" in refused(capfd, "pretrain", tmp_path / "two")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch-size", "41"], ["--batch-size 41 is larger than the 40 training images"]),
        (["--recipe", "moco-v2-cifar10"], ["--batch-size 512 is larger than the 40 training images"]),
        (["--limit", "3"], ["3 usable training images"]),
        (["--backbone", "resnet1999"], ["--backbone resnet1999", "did you mean resnet"]),
        (["--backbone", "convnext_atto"], ["can't take 3-channel images of 16 pixels", "--image-size"]),
        (
            ["--backbone", "vit_narrow", "--image-size", "16", "--view-size", "8"],
            ["--backbone vit_narrow", "images of 8 pixels", "--view-size"],
        ),
        (["--view-size", "20", "--view-size-end", "16"], ["--view-size 20 is larger", "--view-size-end"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else None,
)
def test_options_that_do_not_fit_the_data_leave_no_run_behind(flags, words, data, tmp_path, capfd):
    line = refused(capfd, "pretrain", data, "--device=cpu", "--workers=0", *flags, "--out", tmp_path / "run")
    assert [word for word in words if word not in line] == []
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there(data, monkeypatch, capfd):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "use --device cpu" in refused(capfd, "pretrain", data, "--device=cuda")


def test_cifar10_offline(tmp_path, monkeypatch, capfd):
    def no_network(*_: object, download: bool = False, **__: object) -> None:
        raise OSError("no route\nto host") if download else RuntimeError("not found")

    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.CIFAR10", no_network)
    line = refused(capfd, "pretrain", "cifar10")
    assert "cannot download cifar10" in line
    assert "folder or archive" in line


def test_out_where_nothing_can_be_written(data, tmp_path, capfd):
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below"):
        line = refused(capfd, "pretrain", data, *FLAGS, "--out", out)
        assert f"--out {out}" in line
        assert "choose another --out" in line
    assert "is no folder" in refused(capfd, "pretrain", data, *FLAGS, "--out", file, "--overwrite")
    assert file.read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_out_in_a_folder_without_permission(data, tmp_path, capfd):
    tmp_path.chmod(0o500)
    assert "choose another --out" in refused(capfd, "pretrain", data, *FLAGS, "--out", tmp_path / "run")


def test_knn_on_a_run_that_is_no_encoder_yet_or_any_more(tiny_run: TinyRun, tmp_path, capfd):
    (tmp_path / "config.yaml").write_bytes((tiny_run.path / "config.yaml").read_bytes())
    assert "has not finished" in refused(capfd, "knn", tmp_path, tiny_run.data)
    whole = (tiny_run.path / "encoder.safetensors").read_bytes()
    (tmp_path / "encoder.safetensors").write_bytes(whole[:1000])
    line = refused(capfd, "knn", tmp_path, tiny_run.data)
    assert "encoder.safetensors: not a mocokit encoder file" in line


def test_knn_needs_labels_and_fitting_channels(tiny_run: TinyRun, tmp_path, capfd):
    flat = write_images(tmp_path / "flat", [f"{i}.png" for i in range(20)])
    assert "needs labels" in refused(capfd, "knn", tiny_run.path, flat)
    assert "no such data" in refused(capfd, "knn", tiny_run.path, tmp_path / "nowhere")


def test_our_own_mistakes_are_not_hidden(data, monkeypatch):
    def broken(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mocokit.commands.pretrain.pretrain", broken)
    with pytest.raises(ZeroDivisionError):  # the interpreter's own exit code is 1
        main(["pretrain", data])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"),
         "CUDA out of memory. Tried to allocate 2.00 GiB; try a smaller set, or --batch-size, --image-size,"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), "memory (MPS allocated: 5 GB); try a"),
        (MemoryError(), "mocokit: out of memory; try a smaller set, or --batch-size, --image-size, --limit, --device"),
        (MemoryError("Unable to allocate 9 GiB"), "mocokit: Unable to allocate 9 GiB; try a smaller"),
    ],
)  # fmt: skip
def test_too_little_memory_is_no_fault_of_ours(data, monkeypatch, capfd, error, told):
    monkeypatch.setattr("mocokit.commands.pretrain.pretrain", Mock(side_effect=error))
    assert main(["pretrain", data]) == 2
    *_, line = capfd.readouterr().err.splitlines()
    assert told in line


def test_what_helps_is_what_the_verb_takes(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("mocokit.commands.search.search", Mock(side_effect=MemoryError()))
    assert refused(capfd, "search", tmp_path).endswith("out of memory; try a smaller set, or --device")


@pytest.mark.parametrize("kind", [ImportError, OSError])  # of an extension module, and by ctypes
def test_a_library_that_does_not_fit_into_the_address_space_is_told(data, monkeypatch, capfd, kind):
    error = kind("libtorch_cpu.so: failed to map segment from shared object")
    monkeypatch.setattr("mocokit.cli.importlib", Mock(import_module=Mock(side_effect=error)))
    line = refused(capfd, "knn", "run", data)
    assert line == f"mocokit: not enough memory to load PyTorch ({error}); look at ulimit -v"
    monkeypatch.setattr("mocokit.cli.importlib", Mock(import_module=Mock(side_effect=kind("no module named x"))))
    with pytest.raises(kind, match="no module named x"):
        main(["knn", "run", data])


def test_torchs_own_refusal_of_memory_is_told(data, monkeypatch, capfd):
    monkeypatch.setattr("mocokit.commands.pretrain.pretrain", lambda **_: torch.empty(2**60, dtype=torch.uint8))
    assert "out of memory: you tried to allocate" in refused(capfd, "pretrain", data)


def test_an_interrupt_before_training_is_130(data, monkeypatch, capfd):
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mocokit.commands.pretrain.pretrain", interrupted)
    assert main(["pretrain", data]) == 130
    assert capfd.readouterr().err.splitlines()[1:] == ["mocokit: interrupted"]


# Output --------------------------------------------------------------------------------------------------


def test_json_is_one_object_alone_on_stdout(data, tmp_path, capfd):
    flags = [*FLAGS, "--epochs=1", "--out", str(tmp_path / "run"), "--json"]
    assert main(["pretrain", data, *flags]) == 0
    stdout, stderr = capfd.readouterr()
    result = json.loads(stdout)
    assert stdout.count("\n") == 1
    assert result == json.loads((tmp_path / "run" / "results" / "pretrain.json").read_text())
    assert "epoch 1/1" in stderr
    assert main(["knn", str(tmp_path / "run"), data, "--json"]) == 0
    stdout, stderr = capfd.readouterr()
    assert json.loads(stdout) == json.loads((tmp_path / "run" / "results" / "knn.json").read_text())
    assert "random init" in stderr


def test_stdout_is_empty_without_json_and_the_last_lines_say_what_now(data, tmp_path, capfd):
    flags = [*FLAGS, "--epochs=1", "--out", str(tmp_path / "run")]
    assert main(["pretrain", data, *flags]) == 0
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert "verdict: " in stderr
    table = stderr[stderr.index("kNN of ") :].splitlines()
    assert [line[:16].rstrip() for line in table[1:5]] == ["encoder", "random init", "raw pixels", "colour histogram"]
    assert f"next: mocokit knn {tmp_path / 'run'} {data}" in stderr


def test_print_config_prints_what_is_set_and_does_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("data: photos\nlr: 0.5\nepochs: 9\n")
    assert main(["pretrain", "--config", "c.yaml", "--lr", "0.25", "--print_config"]) == 0
    stdout, stderr = capfd.readouterr()
    assert yaml.safe_load(stdout) == {"data": "photos", "lr": 0.25, "epochs": 9}
    assert stderr == ""
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


def test_a_config_file_alone_is_enough(data, tmp_path, capfd):
    written = {"data": data, "out": str(tmp_path / "run"), "backbone": "resnet18_narrow", "steps": 2, "device": "cpu"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(written))
    assert main(["pretrain", "--config", str(tmp_path / "c.yaml"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["steps"] == 2


def test_a_name_with_strange_letters(tmp_path, capfd):
    folder = tmp_path / "Bilder für [bold]\U0001f98b 100%"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i} é.png").write_bytes(encode(noise(i)))
    flags = [*FLAGS, "--epochs=1", "--out", str(tmp_path / "läufe 1")]
    assert main(["pretrain", str(folder), *flags]) == 0
    assert folder.name in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        *(["knn", "DATA"], ["probe", "DATA"], ["probe", "DATA", "--protocol=sgd", "--epochs=1"], ["finetune", "DATA"]),
        *(["scorecard", "DATA"], ["embed", "DATA", "-o", "f.npy"], ["select", "DATA", "-n2"]),
        *(["export", "--format=timm"], ["export", "--format=onnx"]),
    ],
    ids=" ".join,
)
def test_an_encoder_that_gives_no_numbers_is_refused_by_every_verb(tiny_run: TinyRun, tmp_path, capfd, arguments):
    import mocokit
    from mocokit.deploy.encoder_file import read_header, save_encoder

    encoder, file = mocokit.load(tiny_run.path), tmp_path / "encoder.safetensors"
    next(encoder.parameters()).data.fill_(float("nan"))
    save_encoder(encoder, file, read_header(tiny_run.path)[1])
    names = {"DATA": tiny_run.data, "f.npy": tmp_path / "f.npy"}
    verb, *rest = arguments
    line = refused(capfd, verb, file, *(names.get(word, word) for word in rest))
    assert line == f"mocokit: {file} gives features that are infinite or not a number; train it again with a lower --lr"
    assert not (tmp_path / "f.npy").exists()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are text")
@pytest.mark.parametrize("ascii_only", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_names_that_are_not_utf8_are_taken_by_every_verb(tiny_run: TinyRun, tmp_path, ascii_only):
    """Of a class, a file, the data, the run and what is written; also where the locale knows ASCII alone."""
    place = tmp_path / os.fsdecode(b"b\xe9d")
    data, run, names = place / "data", place / "run", os.fsdecode(b"\xff")
    shutil.copytree(tiny_run.data, data)
    shutil.copytree(tiny_run.path, run)
    for split in ("train", "test"):
        (data / split / "class0").rename(data / split / f"class{names}")
    file = data / "train" / "class1" / f"{names}.png"
    (data / "train" / "class1" / "000.png").rename(file)
    commands = [
        ["pretrain", data, *FLAGS, "--epochs=1", f"--out={place / 'new'}"],
        *(["knn", run, data], ["probe", run, data], ["probe", run, data, "--protocol=sgd", "--epochs=1"]),
        *(["finetune", run, data, "--epochs=1", "--no-baseline"], ["scorecard", run, data]),
    ]
    for suffix in ("parquet", "npz", "npy"):
        output = place / f"f.{suffix}"
        commands.append(["embed", run, data, "-o", output, "--workers=0"])
        commands.append(["search", output, "0", file, "--duplicates=0.5", f"--montage={place / suffix}.png"])
    commands.append(["export", run, "--format=timm", "--data", data])
    commands.append(["select", run, data, "-n5"])
    program = f"""
import sys
from mocokit.cli import main
for command in {[[str(word) for word in command] for command in commands]!a}:
    code = main([*command, "--json"])
    print("ended:", code, command[0], file=sys.stderr)
"""
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"} if ascii_only else {}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | ascii_locale, timeout=300
    )
    codes = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("ended:")]
    assert codes == [["0", command[0]] for command in commands], done.stderr
    assert [json.loads(line).get("path") for line in done.stdout.splitlines()][6] == str(place / "f.parquet")
    table = pq.read_table(pa.BufferReader((place / "f.parquet").read_bytes()))
    assert set(table["label"].to_pylist()) == {"class\\udcff", "class1", "class2"}
    assert "train/class1/\\udcff.png" in table["path"].to_pylist()
    assert "takes no name that is not UTF-8; all rows are in the CSV file" in done.stderr
    assert not (place / "new" / "tensorboard").exists()
