"""A finished run goes on to more epochs as a new run beside it: where it starts, its schedule, and what is refused."""

import dataclasses
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mocokit
from mocokit.auto.defaults import defaults
from mocokit.cli import main
from mocokit.commands import pretrain
from mocokit.errors import Interrupted, UserError
from mocokit.files import write_json, write_text
from mocokit.model.digest import digest
from mocokit.resolved import Extends, Resolved, differences, dump
from mocokit.rundir import RunDirectory
from mocokit.runs.extend import extended_configuration, extended_run, take_over
from mocokit.training.checkpoint import DIGEST, Checkpoints
from mocokit.training.log import read_rows
from tests.auto.test_defaults import facts
from tests.tiny_runs import TINY, flags_of, tiny_data
from tests.training.test_resume import V3, checkpoint, rows, same

SPARSE = {"log_every": 1, "monitor_every": 0, "histograms": False}
KINDS = {
    "growing views": TINY | SPARSE | {"image_size": 16, "view_size": 8, "view_size_end": 16},
    "resnet of v3": V3 | SPARSE | {"head": "v3-resnet", "optimizer": "lars", "lr": 1.0},
}
STEPS, END = 15, 25  # of three and five epochs
LONGER = {"epochs": 5, "extend": True}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", params=KINDS)
def finished(request, tmp_path_factory) -> tuple[str, dict, Path, Path]:
    """Images, options, a run of three epochs, and one that extends it to five. Read them only."""
    folder, options = tmp_path_factory.mktemp("finished"), KINDS[request.param]
    data = str(tiny_data(folder))
    mocokit.pretrain(data, out=str(folder / "run"), **options)
    shutil.copytree(folder / "run", folder / "before")
    mocokit.pretrain(data, out=str(folder / "run"), **options | LONGER)
    return data, options, folder / "run", folder / "run-5-epochs"


def test_the_old_run_stays_as_it_is_and_the_new_one_has_its_rows_and_more(finished):
    _, _, old, new = finished
    assert contents(old) == contents(old.with_name("before"))
    assert rows(new)[: len(rows(old))] == rows(old)
    assert [int(row["step"]) for row in rows(new)] == list(range(END + 1))
    result = RunDirectory(new).read_result("pretrain")
    assert result["extends"] == {"run": str(old), "step": STEPS}
    assert (result["run"], result["epochs"], result["steps"]) == (str(new), 5, END)
    assert not same(*(load_file(run / "encoder.safetensors") for run in (old, new)))


def test_it_starts_with_the_state_of_the_old_run_at_the_first_rate_of_the_schedule(finished, tmp_path, monkeypatch):
    data, options, old, _ = finished
    shutil.copytree(old, tmp_path / "run")
    restore, found = Checkpoints.restore, {}

    def stop_after_restoring(self, trainer):
        restore(self, trainer)
        found.update(trainer.state_dict())
        raise Interrupted("as if killed")

    monkeypatch.setattr(Checkpoints, "restore", stop_after_restoring)
    with pytest.raises(Interrupted):
        mocokit.pretrain(data, out=str(tmp_path / "run"), **options | LONGER)
    last = checkpoint(old)
    assert same(dict(found["task"]), dict(last["task"]))  # both encoders, their statistics, the queue
    assert same(found["optimizer"]["state"], last["optimizer"]["state"])
    rates, ended = ([group["lr"] for group in s["optimizer"]["param_groups"]] for s in (found, last))
    assert ended == pytest.approx([0] * len(rates))
    assert rates == [options["lr"] / options.get("warmup_steps", 1)] * len(rates)
    assert found["step"] == STEPS


def test_warm_up_and_cosine_cover_the_steps_that_remain(finished):
    _, options, _, new = finished
    warmup = options.get("warmup_steps", 0)
    for since, row in enumerate(
        read_rows(new / "metrics.csv", "lr")[STEPS:], start=1
    ):  # a row has the next step's rate
        done = (since - warmup) / (END - STEPS - warmup)
        factor = (since + 1) / warmup if since < warmup else (1 + math.cos(math.pi * done)) / 2
        assert float(row["lr"]) == pytest.approx(options["lr"] * factor, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("step", [STEPS, 17, 20])
def test_a_stopped_one_goes_on_to_the_same_end_and_is_then_finished(finished, tmp_path, step, monkeypatch, capfd):
    """Before its first checkpoint, in warm-up, and at the end of an epoch."""
    data, options, old, whole = finished
    run, new = tmp_path / "run", tmp_path / "run-5-epochs"
    shutil.copytree(old, run)

    def stop(*arguments):
        raise Interrupted("as if killed")

    def stopping(row):
        if row["step"] == step:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(pretrain, "announcer", lambda config: stopping)
        if step == STEPS:
            patched.setattr(pretrain, "take_over", stop)
        with pytest.raises(Interrupted):
            mocokit.pretrain(data, out=str(run), **options | LONGER)
    assert (checkpoint(new)["step"] == step) if step > STEPS else not RunDirectory(new).checkpoint.exists()
    mocokit.pretrain(data, out=str(run), **options | LONGER)
    ours, theirs = checkpoint(new), checkpoint(whole)
    assert ours["step"] == theirs["step"] == END
    assert all(same(ours[part], theirs[part]) for part in ("task", "optimizer", "scheduler"))
    assert rows(new) == rows(whole)
    assert same(*(load_file(r / "encoder.safetensors") for r in (new, whole)))
    before = contents(new)
    mocokit.pretrain(data, out=str(run), **options | LONGER)
    assert f"{new} is finished; give more --epochs, or --overwrite" in capfd.readouterr().err
    mocokit.pretrain(data, out=str(new), **options | {"epochs": 5})  # by its own name
    assert contents(new) == before


def test_the_command_says_how_to_extend_and_extends_an_extended_run(finished, tmp_path, capfd):
    data, options, _, new = finished
    run, more = tmp_path / "run", tmp_path / "run-28-steps"
    shutil.copytree(new, run)
    command = ["pretrain", data, f"--out={run}", *flags_of({n: v for n, v in options.items() if n != "epochs"})]
    assert main([*command, "--steps=28"]) == 2
    told = f"mocokit: {run} is finished at 25 steps; add --extend to go on to 28 from there, in {more}, or give another"
    assert told in capfd.readouterr().err
    assert main([*command, "--time-budget=5m"]) == 2
    told = (
        "is finished at 5 epochs; to go on from there add --extend and give --epochs above 5 in place of --time-budget"
    )
    assert told in capfd.readouterr().err
    assert main([*command, "--steps=28", "--extend"]) == 0
    told = capfd.readouterr().err
    assert f"{more}: goes on from step 25, the end of {run}, to step 28 (epoch 6); the schedule starts again" in told
    assert "verdict: not learning" in told
    assert f"to go on from here: the same command with --out {more} --epochs 12 --extend" in told
    assert [int(row["step"]) for row in rows(more)] == list(range(29))
    config = RunDirectory(more).read_config()
    assert (config.config.epochs, config.config.steps, config.restart) == (6, 28, END)


# Made runs ------------------------------------------------------------------------------------------------

IMAGES, EPOCH = 5000, 39  # steps of an epoch of 128 images
GIVEN = {"data": "x", "lr": 0.1, "epochs": 20}


def made(folder: Path, resolved: Resolved, step: int | None = None) -> RunDirectory:
    """What a finished run leaves, without weights."""
    run = RunDirectory(folder)
    state = {"step": resolved.config.steps if step is None else step}
    for file in (run.checkpoint, run.encoder):
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state | {DIGEST: digest(state)}, file)
    write_json(run.data, {"fingerprint": "f"})
    write_text(run.config, dump(resolved, {}))
    return run


def extended(run: RunDirectory, given: dict, recipe: dict | None = None, fingerprint: str = "f") -> Resolved:
    given = given | {"out": str(extended_run(run, given).path)}
    return extended_configuration(run, given, recipe or {}, fingerprint, IMAGES)


def resolved(given: dict, recipe: dict | None = None) -> Resolved:
    return defaults(given, facts(images=IMAGES), recipe or {})


def test_the_configuration_is_the_old_one_but_for_the_length(tmp_path):
    old = resolved(GIVEN)
    longer = extended(made(tmp_path / "run", old), GIVEN | {"epochs": 50})
    out = str(tmp_path / "run-50-epochs")
    assert longer.config == dataclasses.replace(old.config, epochs=50, steps=50 * EPOCH, out=out)
    assert longer.extends == Extends(str(tmp_path / "run"), 20 * EPOCH)
    assert longer.reasons["steps"] == f"50 epochs of {EPOCH} steps"
    assert differences(GIVEN | {"epochs": 50}, {}, longer) == []
    assert differences(GIVEN | {"epochs": 51}, {}, longer) == ["--epochs 51 (was 50)"]


def test_by_steps(tmp_path):
    given = {"data": "x", "steps": 100}
    longer = extended(made(tmp_path / "run", resolved(given)), given | {"steps": 200})
    assert (longer.config.epochs, longer.config.steps, longer.restart) == (6, 200, 100)
    assert longer.config.out == str(tmp_path / "run-200-steps")
    assert differences(given | {"steps": 200}, {}, longer) == []


def test_a_run_with_a_time_budget_goes_on_by_epochs(tmp_path):
    given = {"data": "x", "time_budget": "6m"}
    old = resolved(given).derive("--time-budget 6m: 300 s", epochs=30, steps=30 * EPOCH)
    run = made(tmp_path / "run", old)
    longer = extended(run, {"data": "x", "epochs": 60})
    assert (longer.config.time_budget, longer.config.steps) == (None, 60 * EPOCH)
    assert differences({"data": "x", "epochs": 60}, {}, longer) == []
    with pytest.raises(UserError, match=r"--extend goes by --epochs or --steps; .*run has 30 epochs, give more than"):
        extended(run, {"data": "x", "time_budget": "12m"})


def test_a_recipes_length_is_replaced(tmp_path):
    given, recipe = {"data": "x", "recipe": "mine.yaml"}, {"steps": 10 * EPOCH, "temperature": 0.3}
    run = made(tmp_path / "run", resolved(given, recipe))
    longer = extended(run, given | {"epochs": 20}, recipe)
    assert (longer.config.steps, longer.config.temperature) == (20 * EPOCH, 0.3)
    assert differences(given | {"epochs": 20}, recipe, longer) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 20}, r"run has 20 epochs \(780 steps\); --extend goes on to more: give --epochs above 20"),
        ({"epochs": 50, "lr": 0.2}, r"other options: --lr 0.2 \(was 0.1\). --extend goes on with the run's own; leave"),
    ],
)
def test_what_is_no_extension_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        extended(made(tmp_path / "run", resolved(GIVEN)), GIVEN | change)


def test_other_images_and_runs_that_are_not_there_or_not_finished_are_refused(tmp_path):
    longer, run = GIVEN | {"epochs": 50}, made(tmp_path / "run", resolved(GIVEN))
    with pytest.raises(
        UserError, match="run holds a run on other images than x has now, so it can't be extended; leave"
    ):
        extended(run, longer, fingerprint="g")
    run.encoder.unlink()
    with pytest.raises(
        UserError, match="run is not finished; run the command that began it to its end, then extend it"
    ):
        extended(run, longer)
    with pytest.raises(UserError, match=r"--extend: .*none holds no run to extend; leave --extend out to begin one"):
        extended(RunDirectory(tmp_path / "none"), longer)
    write_text(tmp_path / "run-50-epochs" / "precious.txt", "mine")
    with pytest.raises(UserError, match=r"run-50-epochs is in the way and not a run directory; move it, or give more"):
        extended(run, longer)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.unlink(), "No such file or directory"),
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), ""),
        (lambda file: torch.save({"step": 20 * EPOCH, DIGEST: "0"}, file), "its digest does not fit"),
        (lambda file: torch.save({"step": 7, DIGEST: digest({"step": 7})}, file), "it is of step 7, the run ended at"),
    ],
)
def test_without_its_last_checkpoint_nothing_is_extended(tmp_path, damage, reason):
    run = made(tmp_path / "run", resolved(GIVEN))
    damage(run.checkpoint)
    way_out = r"run can't be extended; leave --extend out and give another --out to train from the start$"
    with pytest.raises(UserError, match=rf"last\.ckpt: not a usable checkpoint \({reason}.*{way_out}"):
        extended(run, GIVEN | {"epochs": 50})
    new = RunDirectory(tmp_path / "new")
    with pytest.raises(UserError, match="not a usable checkpoint"):
        take_over(new, Extends(str(run.path), 20 * EPOCH))
    assert not new.path.exists()
