"""``mocokit report RUN [DATA]``: one page to look at, which shows what an encoder has found in the images."""

import os
import time
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mocokit import machine
from mocokit.commands.inputs import Inputs, open_inputs
from mocokit.commands.results import record
from mocokit.config import FinetuneConfig, ReportConfig, deciding
from mocokit.console import command, say
from mocokit.data.sampler import random_subset
from mocokit.data.sources import check_there, open_source
from mocokit.data.streaming import SAMPLE_IMAGES
from mocokit.deploy.loading import home_of
from mocokit.errors import UserError, reason_of
from mocokit.evaluation.baselines import features_of
from mocokit.files import printable, write_text
from mocokit.machine import keep_freed_memory
from mocokit.options import DECISIONS, checked_options, documented, fields_of, load_config
from mocokit.outputs import check_file, writing
from mocokit.reporting import about_findings, about_images, about_run
from mocokit.reporting.charts import curves, embedded, map_chart
from mocokit.reporting.clusters import Clusters, cluster
from mocokit.reporting.file_facts import read_facts
from mocokit.reporting.images import ReportImages
from mocokit.reporting.neighbours import SHOWN, Neighbours, neighbours
from mocokit.reporting.page import Section, page, paragraph
from mocokit.reporting.projection import check_installed, project
from mocokit.reporting.shortcuts import Shortcuts, shortcuts
from mocokit.reporting.suggestions import Suggestion, suggestions, write_list
from mocokit.reporting.views import two_views
from mocokit.resolved import Resolved
from mocokit.rundir import RunDirectory
from mocokit.runs.held_out import labels_of, parts_if_labelled
from mocokit.training.log import read_rows

VIEWS = 8
FEW_CLASSES = 20  # that are listed
UNCERTAIN = 20  # test images that a classifier is least certain of


@documented(ReportConfig)
def report(run: str, data: str | None = None, *, overwrite: bool = False, **options: Any) -> dict[str, Any]:
    """Write one HTML page, which needs no network, on what an encoder has found in the images.

    It shows the verdict and the figures that were measured, what the run was made of, its curves and views, a map of
    all images by t-SNE, clusters, neighbours, and what to look into (lists of which lie beside it as CSV files).

    Args:
        run: a run directory, or whatever else `mocokit.load` takes.
        data: the images, as for `mocokit.pretrain`; None takes those of the run.
        overwrite: replace the file that ``output`` names; the page in a run is always replaced.
        options: any other field of `mocokit.config.ReportConfig`.

    Returns:
        ``path`` of the page, its ``bytes``, ``images`` (rows of the map), ``total`` (images that there are),
        ``clusters`` (their sizes), ``suggestions`` (how many images each kind has), ``wall_s``, ``config``,
        ``data_fingerprint``, ``versions``.

    Raises:
        UserError: the extra ``report`` is not installed, no encoder there, unusable images, or a wrong option.
    """
    started = time.perf_counter()
    check_installed("a report")
    given = checked_options(ReportConfig, {"run": run, "data": data, **options})
    directory = RunDirectory(Path(given["run"]))
    resolved = directory.read_config() if directory.config.exists() else None
    config = ReportConfig(**_with_data(given, directory, resolved))
    path = _output(config, directory, overwrite)
    keep_freed_memory()
    inputs = open_inputs(config)
    with machine.CORES.shared():
        seen = _Seen.of(inputs, config)
    contents = _Contents(config, inputs, seen, directory, resolved, path.with_name(f"{path.stem}-lists"))
    with writing(path.parent):
        for suggestion in contents.suggestions:
            write_list(contents.lists, suggestion, seen.images)
        write_text(path, printable(contents.html))  # of folders and paths that are not UTF-8
    size = path.stat().st_size
    figures = {
        "path": str(path),
        "bytes": size,
        "images": len(seen.images),
        "total": seen.images.total,
        "clusters": [len(rows) for rows in seen.clusters.typical],
        "suggestions": {suggestion.key: len(suggestion.rows) for suggestion in contents.suggestions},
    }
    say(f"{path}: the report, {size / 1e6:.1f} MB; open it in a browser")
    return record("report", config.run, config, figures, started, inputs.store.fingerprint)


def _with_data(given: dict[str, Any], directory: RunDirectory, resolved: Resolved | None) -> dict[str, Any]:
    """The options, where no data are named with those of the run that say what its images are."""
    if "data" in given:
        return given
    if resolved is not None:
        of_run = vars(resolved.config)
        if of_run["stream"]:  # more images than there may be room for
            of_run = of_run | {"limit": SAMPLE_IMAGES}
    elif directory.finetuning.exists():
        of_run = load_config(str(directory.finetuning), fields_of(FinetuneConfig), origin=str(directory.finetuning))
    else:
        home_of(given["run"])  # refuses what is no encoder
        raise UserError(f"{given['run']}: does not say what images it is from; name them: mocokit report RUN DATA")
    check_there(str(of_run["data"]), given["run"], f"{command('report', [given['run']])} DATA")
    return {name: of_run[name] for name in ("data", *deciding(*DECISIONS)) if of_run.get(name) is not None} | given


def _output(config: ReportConfig, directory: RunDirectory, overwrite: bool) -> Path:
    """Where the page goes, if it may."""
    own = directory.path / "report.html" if directory.path.is_dir() else Path("report.html")
    path = Path(config.output or own)
    check_file("--output", path, overwrite or (not config.output and directory.path.is_dir()), (".html", ".htm"))
    return path


@dataclass(frozen=True)
class _Seen:
    """What the encoder makes of the images."""

    images: ReportImages
    features: Tensor  # [N, D]
    neighbours: Neighbours
    positions: np.ndarray  # [N, 2] on the map
    clusters: Clusters

    @classmethod
    def of(cls, inputs: Inputs, config: ReportConfig) -> "_Seen":
        splits = parts_if_labelled(inputs.store, config)
        images = ReportImages.of(inputs.store, splits, config.seed, config.images)
        if len(images) < 3:
            raise UserError(f"{config.data}: a report compares images with each other; give at least 3")
        if len(images) < images.total:
            say(f"{len(images):,} of {images.total:,} images are looked at, drawn by seed {config.seed}")
        features = images.features(features_of(inputs.encoder))
        near = neighbours(features)
        positions = project(features, near, config.seed)
        return cls(images, features, near, positions, cluster(features, config.clusters, config.seed))


@dataclass(frozen=True)
class _Contents:
    """The page, section by section."""

    config: ReportConfig
    inputs: Inputs
    seen: _Seen
    directory: RunDirectory
    resolved: Resolved | None
    lists: Path  # the folder of CSV files

    @cached_property
    def suggestions(self) -> list[Suggestion]:
        """What to look into."""
        return suggestions(self.seen.images, self.seen.neighbours)

    @cached_property
    def results(self) -> dict[str, dict[str, Any]]:
        """Of the verbs that have measured the run, on whatever images; one of another structure counts as none."""
        read = {verb: found for verb in about_run.VERBS if (found := self.directory.read_result(verb))}
        for verb, result in list(read.items()):
            try:
                self._is_of_these(result)
                about_run.check(verb, result, self.inputs.spec.channels)
            except Exception as error:
                del read[verb]
                say(f"{self.directory.result(verb)}: damaged ({reason_of(error)}), left out; remove it, measure again")
        return read

    @cached_property
    def shown(self) -> dict[str, dict[str, Any]]:
        """Those of the `results` that are of these images, and, where labels count, of these labels."""
        return {verb: result for verb, result in self.results.items() if self._is_of_these(result)}

    def _is_of_these(self, result: dict[str, Any]) -> bool:
        store = self.inputs.store
        if (streamed := result["config"]).get("stream"):  # measured on a sample, which has a fingerprint of its own
            own = vars(self.config)
            same = os.path.realpath(streamed["data"]) == os.path.realpath(own["data"])
            return same and all(streamed.get(name) == own[name] for name in deciding("labels", "held out"))
        wanted = {store.fingerprint} if result.get("test") else {store.fingerprint, store.train_fingerprint}
        return result["data_fingerprint"] in wanted

    @property
    def html(self) -> str:
        """The whole file."""
        seen, run = self.seen, self.config.run
        rows = read_rows(self.directory.metrics)
        lines = about_run.curves(rows)
        colours = about_images.colourings(seen.images, seen.clusters, self._columns())
        chart = map_chart(seen.positions, colours[0].codes, len(colours[0].kinds))
        scripts, elements = embedded([chart, *(curves(*line) for line in lines)])
        queries = about_images.shown_queries(seen.images, self.config.seed)
        uncertain, chances = self._least_certain()
        sections = [
            self._made_of(),
            Section("curves", "Curves" if lines else "", f'<div class="curves">{"".join(elements[1:])}</div>'),
            self._views(),
            about_images.map_section(seen.images, elements[0]),
            about_images.neighbour_section(queries, seen.neighbours),
            about_images.cluster_section(seen.images, seen.clusters),
            about_findings.suggestion_section(self.suggestions, seen.images, self.lists.name),
            about_findings.label_first_section(selected := self._selected()),
            about_findings.shortcut_section(self._shortcuts()),
        ]
        if "finetune" in self.shown and uncertain:
            sections.append(about_run.classifier(self.shown["finetune"], uncertain, chances))
        sections.append(about_run.use(self.inputs.encoder, run))
        first = [*queries, *selected, *(row for s in self.suggestions for row in about_findings.shown_rows(s))]
        first += [*seen.neighbours.rows[queries, :SHOWN].flatten().tolist(), *uncertain]
        first += [int(row) for rows in seen.clusters.typical for row in rows[: about_images.TYPICAL]]
        data = about_images.page_data(seen.images, seen.neighbours, colours, first, self.config.seed)
        return page(printable(self._title()), self._lead(), sections, data, scripts)

    def _title(self) -> str:
        run = Path(self.config.run)
        return f"{self.inputs.store.name}: what {run.parent.name if run.is_file() else run.name} has found"

    def _lead(self) -> str:
        """The verdict and the figures that are of these images, and which are of others."""
        said = self.shown.get("pretrain", {}).get("verdict")
        html = f'<p class="verdict">{escape(str(said))}</p>' if said else ""
        found = about_run.figures(self.shown, self.inputs.spec.channels)
        found += about_run.left_out({verb: self.results[verb] for verb in self.results if verb not in self.shown})
        verbs = "mocokit scorecard does that, with labels mocokit knn and mocokit probe, too"
        return html + (found or paragraph(f"Nothing was measured yet: {verbs}.", "faint"))

    def _made_of(self) -> Section:
        store, spec, pretrained = self.inputs.store, self.inputs.spec, self.results.get("pretrain", {})
        counts = ", ".join(f"{len(images):,} {split}" for split, images in store.splits.items())
        facts = [
            ("images", printable(f"{counts} of {self.config.data}")),
            ("classes", self._classes()),
            ("encoder", f"{spec.backbone}, {self.inputs.encoder.dim} features, images of {spec.image_size} pixels"),
        ]
        facts += [("training", about_run.training(pretrained))] if pretrained else []
        facts += [("to know", printable(note)) for note in (*store.notes, *store.label_notes)]
        skipped = [(each.name, each.reason) for each in store.skipped]
        if self.resolved and self.config.data == self.resolved.config.data:
            skipped = about_run.read_table(self.directory.skipped, "image", "reason") or skipped
        return about_run.made_of(facts, skipped, self.resolved, pretrained.get("versions") or machine.versions())

    def _classes(self) -> str:
        """How many, and of few the images of each."""
        names, labels = self.seen.images.label_names, self.seen.images.labels
        if names is None or labels is None:
            return "no labels"
        counts = np.bincount(labels[labels >= 0], minlength=len(names)).tolist()
        each = ", ".join(f"{name} {n:,}" for name, n in zip(names, counts, strict=True))
        looked = "" if len(labels) == self.seen.images.total else " of the images that were looked at"
        return printable(f"{len(names)}: {each}{looked}" if len(names) <= FEW_CLASSES else str(len(names)))

    def _views(self) -> Section:
        if self.resolved is None:
            return Section("views", "", "")
        images = self.inputs.store.main
        rows = random_subset(len(images), VIEWS, self.config.seed).numpy()
        return about_run.views([images.image(row) for row in rows], *two_views(images, rows, self.resolved.config))

    def _selected(self) -> list[int]:
        """The rows that `mocokit select` has chosen for this run, in order."""
        row_of = {name: row for row, name in enumerate(self.seen.images.names)}
        chosen = about_run.read_table(self.directory.path / "select.csv", "image")
        return [row_of[name] for (name,) in chosen[: about_findings.SHOWN] if name in row_of]

    def _shortcuts(self) -> Shortcuts:
        """What the features tell that should not matter, on some images."""
        config, images, seed = self.config, self.seen.images, self.config.seed
        source = open_source(str(config.data), config.follow_links, config.max_pixels, config.train, config.test)
        facts = read_facts(source, images, seed)
        untrained = images.features(features_of(self.inputs.random_init), sorted(facts))
        return shortcuts(images, self.seen.features, untrained, facts, seed)

    def _columns(self) -> dict[str, list[str | None]]:
        """The columns of the file of labels, a value for each image."""
        labels = labels_of(self.config.labels, self.config.labels_columns)
        if labels is None:
            return {}
        rows = np.concatenate([self._table_rows(part) for part in self.seen.images.parts])
        found = {}
        for name, column in labels.columns.items():
            values = [None if value is None else str(value) for value in column.to_pylist()]
            found[name] = [values[row] if row >= 0 else None for row in rows.tolist()]
        return found

    @staticmethod
    def _table_rows(part: Any) -> np.ndarray:
        rows = part.images.table_rows
        return np.full(len(part), -1) if rows is None else rows[part.indices.numpy()]

    def _least_certain(self) -> tuple[list[int], list[float]]:
        """The test images of which a fine-tuned encoder is least certain, and the chance of the class that it names."""
        encoder, images = self.inputs.encoder, self.seen.images
        if encoder.classifier is None:
            return [], []
        chance = encoder.probabilities(self.seen.features).max(dim=1).values
        chance[torch.from_numpy(images.splits != "test")] = torch.inf
        found = chance.sort()
        rows = [row for row, value in zip(found.indices.tolist(), found.values.tolist(), strict=True) if value <= 1]
        return rows[:UNCERTAIN], found.values[: len(rows[:UNCERTAIN])].tolist()
