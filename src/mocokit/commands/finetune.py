"""``mocokit finetune RUN DATA``: encoder and classifier trained on labels, beside the same from random weights."""

import dataclasses
import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from mocokit.auto.finetuning import choose_batch_size, choose_lr
from mocokit.commands.inputs import Inputs, open_inputs
from mocokit.commands.results import record
from mocokit.config import FinetuneConfig
from mocokit.console import progress, say
from mocokit.deploy.encoder_file import encoder_path, save_encoder
from mocokit.errors import Interrupted, UserError
from mocokit.evaluation.features import extract
from mocokit.evaluation.metrics import classification_metrics
from mocokit.evaluation.probe import fast
from mocokit.evaluation.splits import LabelledSplits, Subset, split_labelled
from mocokit.files import write_json, write_text
from mocokit.machine import versions
from mocokit.model.encoder import Encoder
from mocokit.options import RECORDS, documented, fields_of, flag, read_options, validate
from mocokit.rundir import RunDirectory
from mocokit.training.finetuning import Finetuning, attach_classifier, train_classifier
from mocokit.training.log import Row, read_rows

VERB, SCRATCH = "finetune", "from-scratch"  # names of result and directories
# May differ when a training goes on; of run and data the content counts.
FREE = {"run", "data", "max_skipped", "out", "baseline"}


@documented(FinetuneConfig)
def finetune(run: str, data: str, *, overwrite: bool = False, **options: Any) -> dict[str, Any]:
    """Train all weights of an encoder and a linear classifier on labelled images.

    The classifier starts as the linear probe of the frozen encoder, so that its first gradients do not spoil the
    features (Kumar et al. 2022, arXiv 2202.10054). The weights of the best validation epoch are kept, which may be
    the start, and measured once on the test part. The same network is also trained from random weights with the
    same budget and augmentation, unless ``baseline=False``.

    Args:
        run: a run directory or its ``encoder.safetensors``.
        data: labelled images, as for `mocokit.pretrain`; see `mocokit.evaluation.splits.split_labelled`.
        overwrite: train again what is in the directories of the results.
        options: any other field of `mocokit.config.FinetuneConfig`.

    Returns:
        ``protocol`` ("finetune" or "from scratch"); ``encoder`` and ``random_init`` (or None), each ``{top1, top5,
        balanced, ci95, per_class, confusion, val_top1, epochs, best_epoch, train_s}``, train_s being the seconds
        of the training steps; ``directory``; ``images`` of each part; ``wall_s``, ``config``, ``data_fingerprint``,
        ``versions``. The directory holds the encoder that `mocokit.load` takes.

    Raises:
        UserError: no encoder there, no labels in the data, a wrong option, or a directory holds another training.
        Interrupted: a signal stopped it; the same call goes on.
    """
    started = time.perf_counter()
    config = FinetuneConfig(**validate({"run": run, "data": data, **options}, fields_of(FinetuneConfig)))
    inputs = open_inputs(config, labels_for="fine-tuning")
    home = encoder_path(run).parent
    out = Path(config.out or home / (SCRATCH if config.from_scratch else VERB))
    if home.resolve().is_relative_to(out.resolve()):
        raise UserError(f"--out {out}: the encoder to start from is there; choose another --out")
    labelled = _split(inputs, config)
    derived = _derived(config, len(labelled.train), inputs.encoder)
    config = dataclasses.replace(config, device=inputs.device, out=str(out), **derived)
    result = _Training(config, inputs, labelled).result(started, overwrite)
    if config.baseline and not config.from_scratch and result["random_init"] is None:
        beside = (Path(options["out"]) if options.get("out") else home) / SCRATCH
        scratch = dataclasses.replace(config, from_scratch=True, out=str(beside))
        baseline = _Training(scratch, inputs, labelled).result(started, overwrite)
        figures = {n: result[n] for n in ("protocol", "encoder", "directory", "images")}
        figures["random_init"] = baseline["encoder"]
        result = record(VERB, str(out), config, figures, started, inputs.store.fingerprint)
    if Path(run).is_dir():
        with RunDirectory(home).writing():
            RunDirectory(home).write_result(VERB, result)
    _conclude(result, data)
    return result


def _split(inputs: Inputs, config: FinetuneConfig) -> LabelledSplits:
    labelled = split_labelled(inputs.store, config.seed)
    if not len(labelled.val) or len(labelled.train) < 2:
        raise UserError(
            f"{config.data}: too few labelled training images to learn from some and stop by others; "
            f"have several of each class"
        )
    return labelled


def _derived(config: FinetuneConfig, images: int, encoder: Encoder) -> dict[str, Any]:
    """Batch size and learning rate where they are not given, also told to the user."""
    derived: dict[str, Any] = {}
    if config.batch_size is None:
        derived["batch_size"] = choose_batch_size(images)
        say(f"--batch-size {derived['batch_size']}: for {images:,} images")
    if config.lr is None:
        batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())
        derived["lr"] = choose_lr(encoder.dim, batch_norm)
        say(f"--lr {derived['lr']:g}: for {encoder.dim} features, {'with' if batch_norm else 'no'} batch norm")
    return derived


@dataclass(frozen=True)
class _Training:
    """One network to train: on what, and with options that also say from which weights and where."""

    config: FinetuneConfig
    inputs: Inputs
    labelled: LabelledSplits

    @property
    def directory(self) -> RunDirectory:
        """Where everything about it lies."""
        assert self.config.out is not None
        return RunDirectory(Path(self.config.out))

    @property
    def protocol(self) -> str:
        """What it shows."""
        return "from scratch" if self.config.from_scratch else "finetune"

    def start(self) -> Encoder:
        """The network at step 0, but for its classifier."""
        if self.config.from_scratch:
            return Encoder.create(self.inputs.spec, self.inputs.seed)
        return self.inputs.encoder

    def task(self, encoder: Encoder) -> Finetuning:
        """``encoder`` with a classifier: small random weights or the linear probe; a checkpoint will replace either."""
        train, names, seed = self.labelled.train, self.labelled.names, self.config.seed
        attach_classifier(encoder, names, seed)
        if not self.config.from_scratch and not self.directory.checkpoint.exists():
            probe = fast(encoder, train, None, len(names), seed)
            bias = probe.bias.nan_to_num(neginf=0)  # of a class without an image to learn from
            assert encoder.classifier is not None
            encoder.classifier.load_state_dict({"weight": probe.weight, "bias": bias})
        return Finetuning(encoder, self.config, train.images, train.indices)

    def result(self, started: float, overwrite: bool) -> dict[str, Any]:
        """Train unless that is done, or go on; what came of it, as in the directory's ``results/finetune.json``.

        Raises:
            UserError, Interrupted: as `finetune`.
        """
        run, encoder = self.directory, self.start()
        weights = _fingerprint(encoder)
        saved = _read_config(run)
        if saved is None or overwrite:
            self._begin(weights)
        elif changed := self._changed(saved, weights):
            raise UserError(
                f"{run.path} holds a training with {'; '.join(changed)}. Give another --out, or --overwrite "
                f"to replace it"
            )
        elif (result := run.read_result(VERB)) and run.encoder.exists():
            say(f"{run.path} is finished; give another --out, or --overwrite to do it again")
            return result
        figures = self._train(encoder, overwrite)
        return record(VERB, str(run.path), self.config, figures, started, self.inputs.store.fingerprint)

    def _changed(self, saved: dict[str, Any], weights: str) -> list[str]:
        """What is another in the directory's training: one phrase each, none if it is this one."""
        run, now = self.directory, dataclasses.asdict(self.config)
        changed = [f"{flag(n)} {value}" for n, value in saved.items() if n not in FREE and value != now[n]]
        if run.read_fingerprint() != self.inputs.store.fingerprint:
            changed.append(f"other images than {self.config.data} has now")
        if run.read_fingerprint("weights") != weights:
            changed.append("other weights to start from")
        return changed

    def _begin(self, weights: str) -> None:
        """Write what identifies the training, its options last; an old training goes only now."""
        run, fingerprint = self.directory, self.inputs.store.fingerprint
        about = {"fingerprint": fingerprint, "images": len(self.labelled.train), "weights": weights}
        with run.writing():
            if run.finetuning.exists():
                shutil.rmtree(run.path)
            write_json(run.data, about)
            parts = [dataclasses.asdict(self.config), {"versions": versions()}]
            write_text(run.finetuning, "\n".join(yaml.safe_dump(part, sort_keys=False) for part in parts))

    def _train(self, encoder: Encoder, overwrite: bool) -> dict[str, Any]:
        """Train, keep the encoder, measure it on the test part."""
        run, config, labelled = self.directory, self.config, self.labelled
        task = self.task(encoder)
        say(
            f"{run.path}: {self.protocol} on {len(labelled.train):,} images, validated on {len(labelled.val):,}, "
            f"at most {config.epochs} epochs"
        )

        def validate(encoder: Encoder) -> float:
            return float(_metrics(encoder, labelled.val, labelled.names)["top1"])

        try:
            with run.writing(), progress(self.protocol, in_logs=False) as report:
                best = train_classifier(task, run, validate, self._announce, report)
        except Interrupted as stopped:
            again = "the same command without --overwrite" if overwrite else "the same command"
            raise Interrupted(f"{stopped}; run {again} to go on from {run.checkpoint}") from None
        about = {
            "seed": self.inputs.seed,
            "protocol": self.protocol,
            "data_fingerprint": self.inputs.store.fingerprint,
            "versions": versions(),
        }
        with run.writing():
            save_encoder(best, run.encoder, about)
        rows = [row for row in read_rows(run.metrics) if row["loss"]]
        epoch_images = task.per_epoch * task.batch_size
        return {
            "protocol": self.protocol,
            "encoder": _metrics(best, labelled.test, labelled.names)
            | {
                "val_top1": float(task.best_top1),
                "epochs": len(rows),
                "best_epoch": int(task.best_epoch),
                "train_s": round(sum(epoch_images / float(row["images_per_second"]) for row in rows), 1),
            },
            "random_init": None,
            "directory": str(run.path),
            "images": {part: len(getattr(labelled, part)) for part in ("train", "val", "test")},
        }

    def _announce(self, row: Row) -> None:
        parts = [f"epoch {row['epoch']}/{self.config.epochs}", f"validation top-1 {row['val_top1']:.1%}"]
        if "loss" in row:
            parts += [f"loss {row['loss']:.3f}", f"top-1 {row['top1']:.1%}"]
            parts.append(f"{row['images_per_second']:.0f} images/s")
        say("  ".join(parts))


def _read_config(run: RunDirectory) -> dict[str, Any] | None:
    """All options of the training in a directory, or None if there is nothing in it yet.

    Raises:
        UserError: something else is there, or the file of options is damaged.
    """
    try:
        if run.is_empty():
            return None
    except OSError as error:
        raise UserError(f"--out {run.path}: {error.strerror}; choose another --out") from None
    if not run.finetuning.exists():
        raise UserError(f"--out {run.path}: exists and holds no fine-tuning; choose another --out")
    origin, fields = str(run.finetuning), fields_of(FinetuneConfig)
    values = read_options(origin, origin)
    saved = validate({name: value for name, value in values.items() if name not in RECORDS}, fields, origin)
    return {name: saved.get(name) for name in fields}


def _fingerprint(encoder: Encoder) -> str:
    """Digest of the backbone's weights and of what rebuilds it."""
    digest = hashlib.blake2b(json.dumps(encoder.spec.to_dict()).encode(), digest_size=16)
    for name, tensor in encoder.backbone.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _metrics(encoder: Encoder, part: Subset, names: tuple[str, ...]) -> dict[str, Any]:
    features = extract(encoder, part.images, part.indices)
    return classification_metrics(encoder.probabilities(features), part.labels, names)


def _conclude(result: dict[str, Any], data: str) -> None:
    names = {"encoder": result["protocol"], "random_init": "from scratch"}
    for name, label in names.items():
        if figures := result[name]:
            low, high = figures["ci95"]
            say(
                f"{label:12} top-1 {figures['top1']:7.2%} [{low:.2%}, {high:.2%}]  top-5 {figures['top5']:7.2%}  "
                f"best epoch {figures['best_epoch']} of {figures['epochs']}, {figures['train_s']:.0f} s"
            )
    say(f"next: mocokit embed {result['directory']} {data} -o features.parquet")
