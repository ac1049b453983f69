"""``mocokit finetune RUN DATA``: encoder and classifier trained on labels, next to the same from random weights."""

import copy
import dataclasses
import math
import time
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from mocokit.auto.finetuning import choose_batch_size, choose_epochs, choose_lr
from mocokit.commands.inputs import Inputs, open_inputs, tiles_of
from mocokit.commands.results import accuracy_line, keep, next_command, record
from mocokit.config import FinetuneConfig
from mocokit.console import progress, say
from mocokit.data.notes import count
from mocokit.deploy.encoder_file import encoder_fingerprint, save_encoder
from mocokit.deploy.loading import home_of
from mocokit.errors import Interrupted, UserError
from mocokit.evaluation.baselines import features_of
from mocokit.evaluation.metrics import classification_metrics
from mocokit.evaluation.probe import fast
from mocokit.evaluation.splits import LabelledSplits, Subset
from mocokit.files import write_json, write_text
from mocokit.machine import versions
from mocokit.model.encoder import Encoder
from mocokit.options import config_of, documented, fields_of, flag, load_config, parse_duration
from mocokit.rundir import RunDirectory
from mocokit.runs.held_out import subset_of
from mocokit.training.finetuning import Finetuning, attach_classifier, starting_loss, step_time, train_classifier
from mocokit.training.log import Row, Status, read_rows

VERB, SCRATCH = "finetune", "from-scratch"  # names of result and directories
CALIBRATION_SHARE, BUDGET_USE = 0.05, 0.93  # of a time budget: for timing steps, in all (nothing follows the clock)
# May differ when a training goes on; of run, data and labels the content counts.
FREE = {"run", "data", "labels", "labels_columns", "max_skipped", "out", "baseline", "device", "threads"}


@documented(FinetuneConfig)
def finetune(
    run: str, data: str, *, overwrite: bool = False, started: float | None = None, **options: Any
) -> dict[str, Any]:
    """Train all weights of an encoder and a linear classifier on labelled images.

    Of weights that others trained, and of a run that went on from some, batch norm keeps its statistics (docs/LOG.md).
    The classifier starts as the linear probe of the frozen encoder, so that its first gradients do not spoil the
    features (Kumar et al. 2022, arXiv 2202.10054); where that is worse than chance on a batch as training sees
    it, as of weak features, small random weights are trained in its place. The weights of the best validation
    epoch are kept, which may be the start, and measured once on the test part. The same network is also trained from
    random weights with the same budget and augmentation, unless ``baseline=False``. With a ``time_budget`` steps are
    timed first, and both are trained for as many epochs as fit, the default number at most; a training that is resumed
    keeps them.

    Args:
        run: a run directory, or whatever else `mocokit.load` takes.
        data: labelled images, as for `mocokit.pretrain`; see `mocokit.evaluation.splits.split_labelled`.
        overwrite: train again what is in the directories of the results.
        started: `time.perf_counter()` when the command began, for ``time_budget``.
        options: any other field of `mocokit.config.FinetuneConfig`.

    Returns:
        ``protocol`` ("finetune" or "from scratch"); ``encoder`` and ``random_init`` (or None), each ``{top1, top5,
        balanced, ci95, balanced_ci95, per_class, confusion, val_top1, epochs, best_epoch, train_s}``, train_s being
        the seconds of the training steps; ``directory``; ``images`` of each part; ``test``, what the test images are
        (``{images, split, held_out, near_duplicates}``); ``wall_s``, ``config``, ``data_fingerprint``, ``versions``.
        The directory holds the encoder that `mocokit.load` takes.

    Raises:
        UserError: no encoder there, no labels in the data, a wrong option, or a directory holds another training.
        Interrupted: a signal stopped it; the same call goes on.
    """
    started = time.perf_counter() if started is None else started
    config = config_of(FinetuneConfig, run=run, data=data, **options)
    inputs = open_inputs(config, labels_for="fine-tuning", to_train=True)
    home = home_of(config.run)
    scratch_out = Path(config.out or home) / SCRATCH
    out = Path(config.out or home / (SCRATCH if config.from_scratch else VERB))
    if home.resolve().is_relative_to(out.resolve()):
        raise UserError(f"--out {out}: the encoder to start from is there; choose another --out")
    labelled = inputs.parts
    assert labelled is not None
    if not len(labelled.val) or len(labelled.train) < 2:
        too_few = "too few labelled training images to learn from some and stop by others; have several of each class"
        raise UserError(f"{config.data}: {too_few}")
    derived = _derived(config, len(labelled.train), inputs.encoder)
    config = dataclasses.replace(config, device=inputs.device, out=str(out), **derived)
    compares = config.baseline and not config.from_scratch
    scratch = dataclasses.replace(config, from_scratch=True, out=str(scratch_out), time_budget=None)
    beside = _Training(scratch, inputs, labelled, started) if compares else None
    training = _Training(config, inputs, labelled, started, beside)
    result = training.result(overwrite)
    if beside and result["random_init"] is None:
        config = training.config  # with the epochs that fit
        beside.config = dataclasses.replace(beside.config, epochs=config.epochs)
        baseline = beside.result(overwrite)
        figures = {n: result[n] for n in ("protocol", "encoder", "directory", "images", "test")}
        figures["random_init"] = baseline["encoder"]
        result = record(VERB, str(out), config, figures, started, inputs.store.fingerprint)
    keep(VERB, config.run, result)
    for line in _lines(result, config.data):
        say(line)
    return result


def _derived(config: FinetuneConfig, images: int, encoder: Encoder) -> dict[str, Any]:
    """Batch size and learning rate where they are not given, also told to the user."""
    batch_size, lr = config.batch_size, config.lr
    if batch_size is None:
        batch_size = choose_batch_size(images)
        say(f"--batch-size {batch_size}: for {images:,} images")
    if lr is None:
        batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())
        lr = choose_lr(encoder.dim, batch_norm)
        say(f"--lr {lr:g}: for {encoder.dim} features, {'with' if batch_norm else 'no'} batch norm")
    return {"batch_size": batch_size, "lr": lr}


class _Training:
    """One network to train: on what, and with options that also say from which weights and where.

    The command ``started`` then. Another training of it, ``beside`` this one, shares its time budget.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        inputs: Inputs,
        labelled: LabelledSplits,
        started: float,
        beside: "_Training | None" = None,
    ) -> None:
        assert config.out is not None
        self.config, self.inputs, self.labelled = config, inputs, labelled
        self.started, self.beside = started, beside
        self.run = RunDirectory(Path(config.out))
        self.protocol = "from scratch" if config.from_scratch else "finetune"

    def result(self, overwrite: bool) -> dict[str, Any]:
        """Train unless that is done, or go on; what came of it, as in the directory's ``results/finetune.json``."""
        with self.run.locked():
            return self._result(overwrite)

    def _result(self, overwrite: bool) -> dict[str, Any]:
        run, inputs, encoder = self.run, self.inputs, self._encoder()
        saved = _read_config(run)
        if saved and not overwrite:
            if self.config.time_budget:  # what fitted when it began
                self.config = dataclasses.replace(self.config, epochs=saved["epochs"])
            self._check(saved, encoder)
            if _is_whole(result := run.read_result(VERB)) and run.encoder.exists():
                say(f"{run.path} is finished; give another --out, or --overwrite to do it again")
                return result or {}
        if self.beside and overwrite:
            self.beside._clear()
        self._check_beside({"epochs"} if self.config.time_budget else set())  # before any work is done
        if saved is None or overwrite:
            self._begin(encoder)
        elif saved["device"] != self.config.device:
            say(f"{run.path}: goes on on {self.config.device} (was {saved['device']})")
        figures, fingerprint = self._train(encoder, overwrite), inputs.store.fingerprint
        return record(VERB, str(run.path), self.config, figures, self.started, fingerprint, must_keep=True)

    def _encoder(self) -> Encoder:
        """To start from."""
        return Encoder.create(self.inputs.spec, self.inputs.seed) if self.config.from_scratch else self.inputs.encoder

    def _identity(self, encoder: Encoder) -> dict[str, str]:
        return {"fingerprint": self.inputs.store.fingerprint, "weights": encoder_fingerprint(encoder)}

    def _check(self, saved: dict[str, Any], encoder: Encoder, free: AbstractSet[str] = frozenset()) -> None:
        """A `UserError` if the directory's training, with ``saved`` options, is another one than this."""
        now, identity = dataclasses.asdict(self.config), self._identity(encoder)
        changed = [f"{flag(n)} {value}" for n, value in saved.items() if n not in FREE | free and value != now[n]]
        other_data, other_start = f"other images than {self.config.data} has now", "other weights to start from"
        others = {"fingerprint": other_data, "weights": other_start}
        changed += [text for name, text in others.items() if self.run.read_fingerprint(name) != identity[name]]
        if changed:
            what, way_out = "; ".join(changed), "Give another --out, or --overwrite to replace it"
            raise UserError(f"{self.run.path} holds a training with {what}. {way_out}")

    def _check_beside(self, free: AbstractSet[str] = frozenset()) -> None:
        if self.beside and (saved := _read_config(self.beside.run)):
            self.beside._check(saved, self.beside._encoder(), free)

    def _clear(self) -> None:
        """Remove an old training."""
        if _read_config(self.run):
            with self.run.locked(), self.run.writing():
                self.run.clear()

    def _begin(self, encoder: Encoder) -> None:
        """Write what identifies the training, its options last; an old training goes only now."""
        with self.run.writing():
            if self.run.finetuning.exists():
                self.run.clear()
            write_json(self.run.data, self._identity(encoder) | {"images": len(self.labelled.train)})
            self._write_options()

    def _write_options(self) -> None:
        options = dataclasses.asdict(self.config) | {"versions": versions()}
        write_text(self.run.finetuning, yaml.safe_dump(options, sort_keys=False))

    def _task(self, encoder: Encoder) -> Finetuning:
        """``encoder`` with a classifier: small random weights or the linear probe; a checkpoint will replace either."""
        attach_classifier(encoder, self.labelled.names, self.config.seed)
        begins = not self.run.checkpoint.exists()
        small = self._start_as_probe(encoder) if begins and not self.config.from_scratch else None
        if begins and self.config.time_budget:
            self._fit_budget(self._trial(encoder))
        task = self._of(encoder)
        task.small = small
        return task

    def _of(self, encoder: Encoder) -> Finetuning:
        keep = bool(encoder.origin.get("keeps_statistics"))  # not of new weights, which have no origin
        return Finetuning(encoder, self.config, self.labelled.train.images, self.labelled.train.indices, keep)

    def _trial(self, encoder: Encoder) -> Finetuning:
        """The task of a copy, to be thrown away."""
        return self._of(copy.deepcopy(encoder).to(self.inputs.device))

    def _start_as_probe(self, encoder: Encoder) -> dict[str, Tensor] | None:
        """Make the classifier the linear probe; its small random weights, if the probe is worse than they in training.

        Of nearly constant features it has huge weights, and statistics of batches in place of running ones, or other
        views, throw its scores about: training takes most of its epochs to undo that.
        """
        assert encoder.classifier is not None
        small, names = copy.deepcopy(encoder.classifier.state_dict()), self.labelled.names
        probe = fast(features_of(encoder), self.labelled.train, None, len(names), self.config.seed)
        bias = probe.bias.nan_to_num(neginf=0)  # of a class without an image to learn from
        encoder.classifier.load_state_dict({"weight": probe.weight, "bias": bias})
        loss, chance = starting_loss(self._trial(encoder)), math.log(len(names))
        if loss <= chance:
            return None
        losses = f"loss {loss:.3g} on a training batch, chance {chance:.3g}"
        say(f"the classifier is trained from small random weights: the linear probe is worse than chance ({losses})")
        return small

    def _fit_budget(self, trial: Finetuning) -> None:
        """Choose the epochs that there is time for, by a ``trial`` that is thrown away, and record them."""
        config, labelled = self.config, self.labelled
        assert config.time_budget is not None
        budget, begun = parse_duration(config.time_budget), time.perf_counter()
        _metrics(trial.encoder, labelled.val, labelled)
        validation = time.perf_counter() - begun
        epoch = trial.per_epoch * step_time(trial, CALIBRATION_SHARE * budget) + validation
        once = validation * (1 + len(labelled.test) / len(labelled.val))  # of the start, and the test
        trainings = 2 if self.beside else 1
        left = (BUDGET_USE * budget - (time.perf_counter() - self.started)) / trainings
        epochs = choose_epochs(left, epoch, once, config.epochs)
        short = "; that is more than there is time for" if once + epoch > left else ""
        each = f" in each of {trainings} trainings" if self.beside else ""
        say(f"--time-budget {config.time_budget}: {count(epochs, 'epoch', 'epochs')} of {epoch:.1f} s{each}{short}")
        self.config = dataclasses.replace(config, epochs=epochs)
        if self.beside:
            self.beside.config = dataclasses.replace(self.beside.config, epochs=epochs)
            self._check_beside()
        with self.run.writing():
            self._write_options()

    def _train(self, encoder: Encoder, overwrite: bool) -> dict[str, Any]:
        """Train, keep the encoder, measure it on the test part."""
        run, labelled = self.run, self.labelled
        task = self._task(encoder)
        images = f"{len(labelled.train):,} images, validated on {len(labelled.val):,}"
        say(f"{run.path}: {self.protocol} on {images}, at most {count(self.config.epochs, 'epoch', 'epochs')}")

        def validate(encoder: Encoder) -> float:
            return float(_metrics(encoder, labelled.val, labelled)["top1"])

        try:
            with run.writing(), progress(self.protocol, in_logs=False) as report:
                status = Status(report, task.per_epoch, self._announce)
                best = train_classifier(task, run, validate, status.announce, status.report)
        except Interrupted as stopped:
            again = "the same command without --overwrite" if overwrite else "the same command"
            raise Interrupted(f"{stopped}; run {again} to go on from {run.checkpoint}") from None
        origin: dict[str, Any] = {"seed": self.inputs.seed, "protocol": self.protocol}
        origin |= {n: v for n, v in encoder.origin.items() if n == "keeps_statistics"}
        origin |= {"tiles": tiles} if (tiles := tiles_of(self.config.tiles, self.inputs.encoder)) else {}
        origin |= {"data_fingerprint": self.inputs.store.train_fingerprint, "versions": versions()}
        origin |= {"held_out": (self.inputs.test or {}).get("held_out")}
        origin |= {"source_fingerprint": self.inputs.source.fingerprint(), **subset_of(self.config)}
        with run.writing():
            save_encoder(best, run.encoder, origin)
        rows = read_rows(run.metrics, "loss", "images_per_second")
        epoch_images = task.per_epoch * task.batch_size
        training = {
            "val_top1": float(task.best_top1),
            "epochs": len(rows),
            "best_epoch": int(task.best_epoch),
            "train_s": round(sum(epoch_images / float(row["images_per_second"]) for row in rows), 1),
        }
        return {
            "protocol": self.protocol,
            "encoder": _metrics(best, labelled.test, labelled) | training,
            "random_init": None,
            "directory": str(run.path),
            "images": {part: len(getattr(labelled, part)) for part in ("train", "val", "test")},
            "test": self.inputs.test,
        }

    def _announce(self, row: Row) -> None:
        line = f"epoch {row['epoch']}/{self.config.epochs}  validation top-1 {row['val_top1']:.1%}"
        if "loss" in row:
            line += f"  loss {row['loss']:.3f}  top-1 {row['top1']:.1%}  {row['images_per_second']:.0f} images/s"
        say(line)


def _read_config(run: RunDirectory) -> dict[str, Any] | None:
    """All options of the training in a directory, or None if there is nothing in it yet."""
    if run.is_empty():
        return None
    if not run.finetuning.exists():
        raise UserError(f"--out {run.path}: exists and holds no fine-tuning; choose another --out")
    fields = fields_of(FinetuneConfig)
    return dict.fromkeys(fields) | load_config(str(run.finetuning), fields, origin=str(run.finetuning))


def _metrics(encoder: Encoder, part: Subset, splits: LabelledSplits) -> dict[str, Any]:
    scores = encoder.probabilities(features_of(encoder)(part))
    return classification_metrics(scores, part.labels, splits.names, splits.trained)


def _lines(result: dict[str, Any], data: str) -> list[str]:
    """What is told of a result."""
    lines = []
    for label, figures in ((result["protocol"], result["encoder"]), ("from scratch", result["random_init"])):
        if figures:
            best = f"best epoch {figures['best_epoch']} of {figures['epochs']}, {figures['train_s']:.0f} s"
            lines.append(f"{accuracy_line(label, figures)}  {best}")
    embed = next_command("embed", result["directory"], data, result["config"], "-o features.parquet")
    return [*lines, f"next: {embed}"]


def _is_whole(result: dict[str, Any] | None) -> bool:
    """Whether a result that was read is of the structure that is written; what is not is measured again."""
    try:
        return result is not None and bool(
            result["encoder"] and result["images"] and result["test"] and _lines(result, "")
        )
    except (LookupError, TypeError, ValueError, AttributeError):
        return False
