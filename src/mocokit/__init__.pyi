"""Public names of mocokit. Written by tools/write_stub.py."""

from collections.abc import Sequence
from typing import Any, Literal

from mocokit.deploy.loading import load as load
from mocokit.errors import UserError as UserError
from mocokit.estimator import MoCoEncoder as MoCoEncoder
from mocokit.model.backbones import create_backbone as create_backbone
from mocokit.model.encoder import Encoder as Encoder
from mocokit.model.moco import MoCoV2 as MoCoV2
from mocokit.model.norm import split_batch_norm as split_batch_norm
from mocokit.preview import draw_views as draw_views
from mocokit.preview import open_images as open_images
from mocokit.preview import read_metrics as read_metrics

__version__: str

def cache(*, clear: bool = False) -> dict[str, Any]:
    """List the decoded images, and what was downloaded, in the cache directory, or remove them.

    Removed images are decoded again when a command needs them; what a command uses at the moment stays.

    Args:
        clear: remove all that no command uses (default false).

    Returns:
        ``path``; ``entries``, each ``{name, bytes, age_s, in_use}``, the largest first, and their ``bytes`` together;
        ``removed``, names; ``wall_s``, ``config``, ``data_fingerprint`` (None), ``versions``.

    Raises:
        UserError: the cache directory can't be written, or entries that no command uses can't be removed.
    """

def embed(
    run: str,
    data: str,
    output: str,
    *,
    overwrite: bool = False,
    backbone: str | None = None,
    image_size: int | None = None,
    device: Literal["cpu", "cuda", "mps"] | None = None,
    threads: int | None = None,
    labels: str | None = None,
    labels_columns: str | None = None,
    train: str | None = None,
    test: str | None = None,
    tiles: int | None = None,
    max_skipped: float = 0.05,
    follow_links: bool = False,
    max_pixels: int = 100000000,
    dtype: Literal["float32", "float16"] = "float32",
    precision: Literal["fp32", "bf16"] | None = None,
    map: bool = False,
    batch_size: int = 256,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write the features of all images to a file, in the order of their paths.

    An interrupted or killed call goes on where it was when it is made again; a finished one is left as it is. Images
    that can't be used are listed in ``OUTPUT.skipped.csv``.

    Args:
        run: a run directory, or whatever else `mocokit.load` takes; a fine-tuned encoder also gives ``predicted``
            and ``probability``.
        data: as for `mocokit.pretrain`; all its splits are embedded.
        output: .parquet, .npz or .npy; see `mocokit.deploy.feature_file`.
        overwrite: replace an existing output.
        backbone: timm model name of the network in a weights file.
        image_size: side of the images for timm:NAME or a weights file; default as trained.
        device: where to compute; default the fastest here (cpu, cuda, mps).
        threads: threads to compute with; default: the cores that others leave.
        labels: table (CSV, TSV, Parquet) of labels by path or name of the images.
        labels_columns: its columns: image,label or image,label,split; default the usual names.
        train: name of the folder of training images, if not a usual one.
        test: name of the folder of test images, if not a usual one.
        tiles: side of tiles in pixels, 0: none; default as for the run.
        max_skipped: share of unusable images that is accepted (default 0.05).
        follow_links: read what symbolic links in a folder lead to outside it (default false).
        max_pixels: skip images of more pixels, which would fill the memory (default 100000000).
        dtype: number format of the features (float32, float16; default float32).
        precision: arithmetic of the encoder; default: on a CPU what is clearly faster there, else fp32 (fp32,
            bf16).
        map: also columns x, y, cluster and neighbours, as in a report (.parquet) (default false).
        batch_size: images encoded at once (default 256).
        workers: processes that decode images; 0: none.

    Returns:
        ``path``, ``rows``, ``dim``, ``skipped`` (number of images), ``images_per_second`` (of what this call
        embedded; None if all was there), ``wall_s``, ``config``, ``data_fingerprint`` (of the files), ``versions``.

    Raises:
        UserError: no encoder there, unusable images, an output that another command wrote, or a wrong option.
        Interrupted: Ctrl-C; the parts that are done stay.
    """

def export(
    run: str,
    *,
    overwrite: bool = False,
    backbone: str | None = None,
    image_size: int | None = None,
    format: Literal["timm", "onnx"],
    output: str | None = None,
    data: str | None = None,
    follow_links: bool = False,
    max_pixels: int = 100000000,
) -> dict[str, Any]:
    """Write the encoder in a form that timm or ONNX Runtime loads alone, checked against PyTorch.

    Args:
        run: a run directory, or whatever else `mocokit.load` takes; a fine-tuned encoder brings its classifier.
        overwrite: replace an earlier export.
        backbone: timm model name of the network in a weights file.
        image_size: side of the images for timm:NAME or a weights file; default as trained.
        format: timm: weights for timm or torchvision; onnx: a graph (timm, onnx).
        output: directory; default RUN/export/FORMAT.
        data: images to check the export with; default synthetic ones.
        follow_links: read what symbolic links in a folder lead to outside it (default false).
        max_pixels: skip images of more pixels, which would fill the memory (default 100000000).

    Returns:
        ``path`` of the directory (timm) or file (onnx), ``format``, ``max_abs_diff``: the largest difference from
        the encoder's outputs; ``wall_s``, ``config``, ``data_fingerprint``, ``versions``.

    Raises:
        UserError: no encoder there, it gives no finite numbers, an export is already there, a package is missing, or a
            wrong option.
        RuntimeError: the export does not compute what the encoder does; it is not written.
    """

def finetune(
    run: str,
    data: str,
    *,
    overwrite: bool = False,
    started: float | None = None,
    backbone: str | None = None,
    image_size: int | None = None,
    device: Literal["cpu", "cuda", "mps"] | None = None,
    threads: int | None = None,
    labels: str | None = None,
    labels_columns: str | None = None,
    train: str | None = None,
    test: str | None = None,
    tiles: int | None = None,
    max_skipped: float = 0.05,
    follow_links: bool = False,
    max_pixels: int = 100000000,
    limit: int | None = None,
    imbalance: float | None = None,
    test_share: float = 0.2,
    split_by: str | None = None,
    seed: int = 0,
    out: str | None = None,
    from_scratch: bool = False,
    baseline: bool = True,
    epochs: int = 50,
    time_budget: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    layer_decay: float = 1.0,
    weight_decay: float = 0.05,
    patience: int = 20,
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
        backbone: timm model name of the network in a weights file.
        image_size: side of the images for timm:NAME or a weights file; default as trained.
        device: where to compute; default the fastest here (cpu, cuda, mps).
        threads: threads to compute with; default: the cores that others leave.
        labels: table (CSV, TSV, Parquet) of labels by path or name of the images.
        labels_columns: its columns: image,label or image,label,split; default the usual names.
        train: name of the folder of training images, if not a usual one.
        test: name of the folder of test images, if not a usual one.
        tiles: side of tiles in pixels, 0: none; default as for the run.
        max_skipped: share of unusable images that is accepted (default 0.05).
        follow_links: read what symbolic links in a folder lead to outside it (default false).
        max_pixels: skip images of more pixels, which would fill the memory (default 100000000).
        limit: use a random, class-balanced subset of N training images.
        imbalance: long-tailed subset: largest class by smallest; 1: balanced, 0: as they are.
        test_share: share of each class held out for testing, if no test split (default 0.2).
        split_by: keep together when held out: parent (folder) or a column of --labels, as patient.
        seed: seed of every random draw (default 0).
        out: directory; default RUN/finetune or RUN/from-scratch.
        from_scratch: train from random weights only (default false).
        baseline: also train from random weights, to compare (default true).
        epochs: passes over the images at most (default 50).
        time_budget: time for the whole command, e.g. 90s, 6m, 2h.
        batch_size: images per step; default 64 or fewer.
        lr: peak learning rate; default 0.001 at 512 features.
        layer_decay: factor on the learning rate per layer (default 1.0).
        weight_decay: weight decay of AdamW (default 0.05).
        patience: stop after N epochs without progress; 0: never (default 20).

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

def knn(
    run: str,
    data: str,
    *,
    backbone: str | None = None,
    image_size: int | None = None,
    device: Literal["cpu", "cuda", "mps"] | None = None,
    threads: int | None = None,
    labels: str | None = None,
    labels_columns: str | None = None,
    train: str | None = None,
    test: str | None = None,
    tiles: int | None = None,
    max_skipped: float = 0.05,
    follow_links: bool = False,
    max_pixels: int = 100000000,
    limit: int | None = None,
    imbalance: float | None = None,
    test_share: float = 0.2,
    split_by: str | None = None,
    seed: int = 0,
    k: int = 200,
    temperature: float = 0.1,
    baseline: bool = True,
) -> dict[str, Any]:
    """Compare an encoder with its baselines by weighted kNN classification of labelled images.

    Args:
        run: a run directory, or whatever else `mocokit.load` takes.
        data: labelled images, as for `mocokit.pretrain`; `mocokit.evaluation.splits.split_labelled` says which of
            them are classified by which others.
        backbone: timm model name of the network in a weights file.
        image_size: side of the images for timm:NAME or a weights file; default as trained.
        device: where to compute; default the fastest here (cpu, cuda, mps).
        threads: threads to compute with; default: the cores that others leave.
        labels: table (CSV, TSV, Parquet) of labels by path or name of the images.
        labels_columns: its columns: image,label or image,label,split; default the usual names.
        train: name of the folder of training images, if not a usual one.
        test: name of the folder of test images, if not a usual one.
        tiles: side of tiles in pixels, 0: none; default as for the run.
        max_skipped: share of unusable images that is accepted (default 0.05).
        follow_links: read what symbolic links in a folder lead to outside it (default false).
        max_pixels: skip images of more pixels, which would fill the memory (default 100000000).
        limit: use a random, class-balanced subset of N training images.
        imbalance: long-tailed subset: largest class by smallest; 1: balanced, 0: as they are.
        test_share: share of each class held out for testing, if no test split (default 0.2).
        split_by: keep together when held out: parent (folder) or a column of --labels, as patient.
        seed: seed of every random draw (default 0).
        k: nearest neighbours of each image (kNN) (default 200).
        temperature: temperature of the neighbours' weights (kNN) (default 0.1).
        baseline: also measure what it is compared with, which takes most of the time (default true).

    Returns:
        ``encoder``, and with a ``baseline`` ``given_weights`` (of a run that went on from weights), ``random_init``,
        ``raw_pixels`` and ``colour_histogram`` (of gray images: of gray levels and edge directions), each ``{top1,
        top5, ci95, balanced, per_class: {name: {recall, images}}, wall_s}``, top5 being None for five classes or fewer
        that train; ``test``, what the test images are (``{images, split, held_out, near_duplicates}``); ``wall_s``,
        ``config``, ``data_fingerprint``, ``versions``.

    Raises:
        UserError: no encoder there, no labels in the data, or a wrong option.
    """

def pretrain(
    data: str,
    *,
    overwrite: bool = False,
    extend: bool = False,
    started: float | None = None,
    out: str | None = None,
    recipe: str = "auto",
    weights: str | None = None,
    backbone: str | None = None,
    zero_init_last: bool = True,
    image_size: int | None = None,
    view_size: int | None = None,
    view_size_end: int | None = None,
    head: Literal["linear", "mlp", "v3-resnet", "v3-vit"] | None = None,
    head_hidden: int = 0,
    head_dim: int | None = None,
    bn_splits: int | None = None,
    queue_size: int | None = None,
    momentum: float | None = None,
    momentum_end: float | None = None,
    temperature: float | None = None,
    symmetric: bool | None = None,
    views: Literal["v1", "v2", "v3"] | None = None,
    crop_min: float | None = None,
    flip_p: float | None = None,
    jitter_strength: float | None = None,
    gray_p: float | None = None,
    blur_p: float | None = None,
    blur_p2: float | None = None,
    solarize_p2: float | None = None,
    choose_views: bool = False,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    optimizer: Literal["sgd", "lars", "larc", "adamw", "muon"] | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    sgd_momentum: float = 0.9,
    trust: float = 0.001,
    schedule: Literal["cosine", "step"] | None = None,
    warmup_steps: int | None = None,
    time_budget: str | None = None,
    turns: str | None = None,
    limit: int | None = None,
    imbalance: float | None = None,
    labels: str | None = None,
    labels_columns: str | None = None,
    train: str | None = None,
    test: str | None = None,
    test_share: float = 0.2,
    split_by: str | None = None,
    tiles: int = 0,
    stream: bool = False,
    max_skipped: float = 0.05,
    follow_links: bool = False,
    max_pixels: int = 100000000,
    seed: int = 0,
    device: Literal["cpu", "cuda", "mps"] | None = None,
    devices: int = 1,
    threads: int | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    compile: bool | None = None,
    cuda_graphs: bool = False,
    workers: int | None = None,
    monitor_every: int | None = None,
    knn_k: int = 200,
    knn_temperature: float = 0.1,
    knn_images: int | None = None,
    evaluate: bool = True,
    report: bool | None = None,
    log_every: int = 50,
    histograms: bool = True,
    checkpoint_every: float = 60.0,
    logger: Literal["wandb", "mlflow"] | None = None,
) -> dict[str, Any]:
    """Learn an encoder from images without labels.

    Args:
        data: ``digits``, ``cifar10``, a folder, an archive, a NumPy file, Parquet or tar shards, ``hf:NAME``.
        overwrite: replace an existing run directory.
        extend: go on from the finished run in ``out`` to more ``epochs`` or ``steps``, in a new run directory beside
            it, such as ``runs/digits-400-epochs``; learning rate and momentum start again (warm restart).
        started: `time.perf_counter()` when the command began, for ``time_budget``.
        out: run directory.
        recipe: auto, a recipe's name or a recipe file (default auto).
        weights: start from timm, timm:NAME, a run, or a weights file (with --backbone).
        backbone: timm model name, e.g. resnet18_cifar or resnet50.
        zero_init_last: residual branches end in a batch norm that starts at zero (default true).
        image_size: side of the encoder's square images, in pixels.
        view_size: side of the views at the start: small ones are fast.
        view_size_end: side of the views at the end, reached in a few steps.
        head: projection head: linear (v1), mlp (v2); v3: with batch norm and a prediction head (linear, mlp,
            v3-resnet, v3-vit).
        head_hidden: width of hidden layers, if any; 0: as the features (default 0).
        head_dim: dimension of the contrasted embedding.
        bn_splits: groups of split batch norm, over all processes; 1: plain; 0: its statistics stay.
        queue_size: negatives in the queue (K); 0 (v3): those of the batch.
        momentum: momentum of the key encoder (m) at the start.
        momentum_end: momentum at the end, reached on half a cosine.
        temperature: softmax temperature of InfoNCE (tau).
        symmetric: let both views be the query in turn (twice the work per step).
        views: strengths and order of the colours of that paper (v1, v2, v3).
        crop_min: smallest share of the image's area in a view.
        flip_p: probability of a horizontal flip.
        jitter_strength: factor on the colour jitter; 0: none.
        gray_p: probability of turning a view gray.
        blur_p: probability of a Gaussian blur of view 1.
        blur_p2: probability of a Gaussian blur of view 2.
        solarize_p2: probability of solarizing view 2.
        choose_views: choose colours and crops by four short runs (default false).
        epochs: passes over the images.
        steps: optimizer steps in all, instead of epochs.
        batch_size: images per step, over all processes.
        optimizer: sgd (v1, v2), lars (v3, ResNet), larc (never exceeds the rate), adamw (v3, ViT) or muon (sgd,
            lars, larc, adamw, muon).
        lr: peak learning rate.
        weight_decay: weight decay.
        sgd_momentum: momentum of SGD, LARS, LARC and Muon (default 0.9).
        trust: trust coefficient of LARS and LARC (default 0.001).
        schedule: learning-rate schedule: cosine (v2) or step (v1) (cosine, step).
        warmup_steps: steps of linear warm-up before the schedule.
        time_budget: time for the whole command, e.g. 90s, 6m, 2h.
        turns: STEP:LEFT,...: steps that were left when, to repeat a run with a time budget as it went.
        limit: use a random, class-balanced subset of N training images.
        imbalance: long-tailed subset: largest class by smallest; 1: balanced, 0: as they are.
        labels: table (CSV, TSV, Parquet) of labels by path or name of the images.
        labels_columns: its columns: image,label or image,label,split; default the usual names.
        train: name of the folder of training images, if not a usual one.
        test: name of the folder of test images, if not a usual one.
        test_share: share of each class held out for testing, if no test split (default 0.2).
        split_by: keep together when held out: parent (folder) or a column of --labels, as patient.
        tiles: cut images into tiles of about N x N pixels; 0: leave them whole (default 0).
        stream: read images anew each epoch; the cache holds only a sample (default false).
        max_skipped: share of unusable images that is accepted (default 0.05).
        follow_links: read what symbolic links in a folder lead to outside it (default false).
        max_pixels: skip images of more pixels, which would fill the memory (default 100000000).
        seed: seed of every random draw (default 0).
        device: where to compute (cpu, cuda, mps).
        devices: processes on this machine, one per GPU (default 1).
        threads: threads to compute with; default: the cores that others leave.
        precision: arithmetic of the encoders (fp32, bf16).
        compile: compile the encoders: faster after a minute.
        cuda_graphs: run compiled encoders as CUDA graphs (default false).
        workers: processes that decode and load images.
        monitor_every: epochs between quality checks; 0: none.
        knn_k: nearest neighbours of each image (kNN) (default 200).
        knn_temperature: temperature of the neighbours' weights (kNN) (default 0.1).
        knn_images: most images and queries of the final kNN, twice as many for scores; 0: all.
        evaluate: measure encoder and baselines at the end (default true).
        report: write report.html at the end, of 2,000 images at most (extra report).
        log_every: steps between rows of metrics.csv (default 50).
        histograms: pictures in TensorBoard, of weights too (default true).
        checkpoint_every: seconds between checkpoints (default 60.0).
        logger: tracker that also gets every row of metrics.csv; an extra each (wandb, mlflow).

    Returns:
        What the run came to, as in its ``results/pretrain.json``: run, recipe, images, skipped, epochs, steps,
        wall_s, loss, loss_over_chance (None if the queue was still filling; both if ``metrics.csv`` has lost them),
        verdict; test (what the test images are: images, split, held_out, near_duplicates) and knn (top1, top5 and the
        interval ci95), None without labels; scorecard and retrieval_ci95, as knn each of encoder, given_weights (if
        there are any), random_init, raw_pixels and colour_histogram, all four None with ``evaluate=False``; config,
        data_fingerprint, versions; extends (run and step) if it goes on from another. Of several processes that
        torchrun or SLURM started, only the first returns it; the others nothing.

    Raises:
        UserError: the data or an option is wrong, or the run directory holds another run.
        Interrupted: a signal stopped the run; the same call goes on.
    """

def probe(
    run: str,
    data: str,
    *,
    backbone: str | None = None,
    image_size: int | None = None,
    device: Literal["cpu", "cuda", "mps"] | None = None,
    threads: int | None = None,
    labels: str | None = None,
    labels_columns: str | None = None,
    train: str | None = None,
    test: str | None = None,
    tiles: int | None = None,
    max_skipped: float = 0.05,
    follow_links: bool = False,
    max_pixels: int = 100000000,
    limit: int | None = None,
    imbalance: float | None = None,
    test_share: float = 0.2,
    split_by: str | None = None,
    seed: int = 0,
    protocol: Literal["fast", "sgd"] = "fast",
    labels_per_class: int | None = None,
    label_fraction: float | None = None,
    repeats: int = 5,
    epochs: int = 100,
    batch_size: int = 256,
    lr: float = 30.0,
    baseline: bool = True,
) -> dict[str, Any]:
    """Train a linear classifier on an encoder's frozen features, on those of its random initialisation, on raw pixels
    and on a colour histogram.

    Args:
        run: a run directory, or whatever else `mocokit.load` takes.
        data: labelled images, as for `mocokit.pretrain`; `mocokit.evaluation.splits.split_labelled` says which of
            them train, validate and test.
        backbone: timm model name of the network in a weights file.
        image_size: side of the images for timm:NAME or a weights file; default as trained.
        device: where to compute; default the fastest here (cpu, cuda, mps).
        threads: threads to compute with; default: the cores that others leave.
        labels: table (CSV, TSV, Parquet) of labels by path or name of the images.
        labels_columns: its columns: image,label or image,label,split; default the usual names.
        train: name of the folder of training images, if not a usual one.
        test: name of the folder of test images, if not a usual one.
        tiles: side of tiles in pixels, 0: none; default as for the run.
        max_skipped: share of unusable images that is accepted (default 0.05).
        follow_links: read what symbolic links in a folder lead to outside it (default false).
        max_pixels: skip images of more pixels, which would fill the memory (default 100000000).
        limit: use a random, class-balanced subset of N training images.
        imbalance: long-tailed subset: largest class by smallest; 1: balanced, 0: as they are.
        test_share: share of each class held out for testing, if no test split (default 0.2).
        split_by: keep together when held out: parent (folder) or a column of --labels, as patient.
        seed: seed of every random draw (default 0).
        protocol: fast: logistic regression on features extracted once; sgd: trained on augmented images (fast,
            sgd; default fast).
        labels_per_class: train on N labelled images per class.
        label_fraction: train on this share of the labels.
        repeats: random choices of the few labels (default 5).
        epochs: sgd: passes over the images (default 100).
        batch_size: sgd: images per step (default 256).
        lr: sgd: peak learning rate (default 30.0).
        baseline: also measure what it is compared with, which takes most of the time (default true).

    Returns:
        ``protocol``; ``encoder``, and with a ``baseline`` ``given_weights`` (of a run that went on from weights),
        ``random_init``, ``raw_pixels`` and ``colour_histogram``, each ``{top1, top5, balanced, ci95, balanced_ci95,
        per_class, confusion}`` on the test images, with ``wall_s`` and, in the fast protocol, which the latter two
        always follow, the chosen ``l2``; top5 is None for five classes or fewer that train; ``ci95_of``, what the
        intervals allow for; ``images``, the numbers of ``train``, ``val`` and ``test`` images; ``test``, what the test
        images are (``{images, split, held_out, near_duplicates}``); ``wall_s``, ``config``, ``data_fingerprint``,
        ``versions``. With few labels figures are means over the repeats, without precision and ``confusion``,
        ``accuracies`` lists each top-1, and ``l2`` is a list.

    Raises:
        UserError: no encoder there, no labels in the data, too few labels, or a wrong option.
    """

def report(
    run: str,
    data: str | None = None,
    *,
    overwrite: bool = False,
    backbone: str | None = None,
    image_size: int | None = None,
    device: Literal["cpu", "cuda", "mps"] | None = None,
    threads: int | None = None,
    labels: str | None = None,
    labels_columns: str | None = None,
    train: str | None = None,
    test: str | None = None,
    tiles: int | None = None,
    max_skipped: float = 0.05,
    follow_links: bool = False,
    max_pixels: int = 100000000,
    limit: int | None = None,
    imbalance: float | None = None,
    test_share: float = 0.2,
    split_by: str | None = None,
    seed: int = 0,
    output: str | None = None,
    images: int = 100000,
    clusters: int | None = None,
) -> dict[str, Any]:
    """Write one HTML page, which needs no network, on what an encoder has found in the images.

    It shows the verdict and the figures that were measured, what the run was made of, its curves and views, a map of
    all images by t-SNE, clusters, neighbours, and what to look into (lists of which lie beside it as CSV files).

    Args:
        run: a run directory, or whatever else `mocokit.load` takes.
        data: the images, as for `mocokit.pretrain`; None takes those of the run.
        overwrite: replace the file that ``output`` names; the page in a run is always replaced.
        backbone: timm model name of the network in a weights file.
        image_size: side of the images for timm:NAME or a weights file; default as trained.
        device: where to compute; default the fastest here (cpu, cuda, mps).
        threads: threads to compute with; default: the cores that others leave.
        labels: table (CSV, TSV, Parquet) of labels by path or name of the images.
        labels_columns: its columns: image,label or image,label,split; default the usual names.
        train: name of the folder of training images, if not a usual one.
        test: name of the folder of test images, if not a usual one.
        tiles: side of tiles in pixels, 0: none; default as for the run.
        max_skipped: share of unusable images that is accepted (default 0.05).
        follow_links: read what symbolic links in a folder lead to outside it (default false).
        max_pixels: skip images of more pixels, which would fill the memory (default 100000000).
        limit: use a random, class-balanced subset of N training images.
        imbalance: long-tailed subset: largest class by smallest; 1: balanced, 0: as they are.
        test_share: share of each class held out for testing, if no test split (default 0.2).
        split_by: keep together when held out: parent (folder) or a column of --labels, as patient.
        seed: seed of every random draw (default 0).
        output: the page; default RUN/report.html.
        images: most images that are looked at, drawn at random (default 100000).
        clusters: clusters; default the root of a tenth of the images, 2 to 20.

    Returns:
        ``path`` of the page, its ``bytes``, ``images`` (rows of the map), ``total`` (images that there are),
        ``clusters`` (their sizes), ``suggestions`` (how many images each kind has), ``wall_s``, ``config``,
        ``data_fingerprint``, ``versions``.

    Raises:
        UserError: the extra ``report`` is not installed, no encoder there, unusable images, or a wrong option.
    """

def scorecard(
    run: str,
    data: str,
    *,
    backbone: str | None = None,
    image_size: int | None = None,
    device: Literal["cpu", "cuda", "mps"] | None = None,
    threads: int | None = None,
    labels: str | None = None,
    labels_columns: str | None = None,
    train: str | None = None,
    test: str | None = None,
    tiles: int | None = None,
    max_skipped: float = 0.05,
    follow_links: bool = False,
    max_pixels: int = 100000000,
    limit: int | None = None,
    imbalance: float | None = None,
    test_share: float = 0.2,
    split_by: str | None = None,
    seed: int = 0,
    images: int = 1000,
) -> dict[str, Any]:
    """Compare an encoder with its baselines by the scores that need no labels.

    Args:
        run: a run directory, whose own augmentation makes the two views of each image; or whatever else `mocokit.load`
            takes, for which the augmentation is that of MoCo v2.
        data: images, as for `mocokit.pretrain`; the training split is scored, or if there is none, the next.
        backbone: timm model name of the network in a weights file.
        image_size: side of the images for timm:NAME or a weights file; default as trained.
        device: where to compute; default the fastest here (cpu, cuda, mps).
        threads: threads to compute with; default: the cores that others leave.
        labels: table (CSV, TSV, Parquet) of labels by path or name of the images.
        labels_columns: its columns: image,label or image,label,split; default the usual names.
        train: name of the folder of training images, if not a usual one.
        test: name of the folder of test images, if not a usual one.
        tiles: side of tiles in pixels, 0: none; default as for the run.
        max_skipped: share of unusable images that is accepted (default 0.05).
        follow_links: read what symbolic links in a folder lead to outside it (default false).
        max_pixels: skip images of more pixels, which would fill the memory (default 100000000).
        limit: use a random, class-balanced subset of N training images.
        imbalance: long-tailed subset: largest class by smallest; 1: balanced, 0: as they are.
        test_share: share of each class held out for testing, if no test split (default 0.2).
        split_by: keep together when held out: parent (folder) or a column of --labels, as patient.
        seed: seed of every random draw (default 0).
        images: most images that are scored; retrieval depends on it (default 1000).

    Returns:
        ``scorecard``: ``encoder``, maybe ``given_weights``, ``random_init``, ``raw_pixels`` and ``colour_histogram``,
        each with the `SCORES` by name; ``retrieval_ci95``: of each, the 95 % interval of the one score that is an
        accuracy; ``meaning``: a sentence on each score; ``images``: how many were scored; ``wall_s``, ``config``,
        ``data_fingerprint``, ``versions``. Labels are not looked at.

    Raises:
        UserError: no encoder there, fewer than two images, or a wrong option.
    """

def search(
    features: str,
    queries: str | int | Sequence[str | int] = (),
    *,
    overwrite: bool = False,
    k: int = 10,
    duplicates: str | None = None,
    montage: str | None = None,
    run: str | None = None,
    data: str | None = None,
    follow_links: bool = False,
    max_pixels: int = 100000000,
    device: Literal["cpu", "cuda", "mps"] | None = None,
) -> dict[str, Any]:
    """Find the most similar images in a feature file, and pairs that are nearly the same.

    Args:
        features: what `mocokit.embed` wrote; for rows and duplicates any .npy matrix will do.
        queries: image files, or row numbers of the features; a row is not its own neighbour.
        overwrite: replace an existing montage.
        k: neighbours of each query (default 10).
        duplicates: list pairs with at least this cosine; auto: far nearer than the nearest usually is.
        montage: PNG file of the queries with their neighbours.
        run: run directory that embeds the queries, if it has moved.
        data: images of the features, if they have moved.
        follow_links: read what symbolic links in a folder lead to outside it (default false).
        max_pixels: skip images of more pixels, which would fill the memory (default 100000000).
        device: where to compute; default the fastest here (cpu, cuda, mps).

    Returns:
        ``queries``: for each ``{query, row, path, label, neighbours: [{row, path, label, similarity}]}`` with
        cosines, the greatest first. With ``duplicates`` (a cosine, or "auto": five times nearer to 1 than the nearest
        other row usually is) also ``duplicates``: ``{rows, paths, similarity}`` of each pair of at least that cosine,
        ``duplicates_from``; ``duplicate_pairs``, how many there are, listed or not; and ``duplicate_groups``, the
        rows that listed pairs connect, largest group first. ``rows``, ``dim``, ``wall_s``, ``config``,
        ``data_fingerprint``, ``versions``.

    Raises:
        UserError: a file that is missing, damaged or of another encoder; a row out of range; a wrong option.
    """

def select(
    run: str,
    data: str,
    count: int,
    *,
    overwrite: bool = False,
    backbone: str | None = None,
    image_size: int | None = None,
    device: Literal["cpu", "cuda", "mps"] | None = None,
    threads: int | None = None,
    labels: str | None = None,
    labels_columns: str | None = None,
    train: str | None = None,
    test: str | None = None,
    tiles: int | None = None,
    max_skipped: float = 0.05,
    follow_links: bool = False,
    max_pixels: int = 100000000,
    limit: int | None = None,
    imbalance: float | None = None,
    test_share: float = 0.2,
    split_by: str | None = None,
    seed: int = 0,
    given: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Choose which training images to label first: typical ones of all kinds that there are, and no test images.

    No label decides what is chosen. But where images have labels and no test split, those that are held out for testing
    are left out, and a ``limit`` takes as many of each class.

    Args:
        run: a run directory, or whatever else `mocokit.load` takes.
        data: images, as for `mocokit.pretrain`.
        count: how many images to choose.
        overwrite: replace an existing output.
        backbone: timm model name of the network in a weights file.
        image_size: side of the images for timm:NAME or a weights file; default as trained.
        device: where to compute; default the fastest here (cpu, cuda, mps).
        threads: threads to compute with; default: the cores that others leave.
        labels: table (CSV, TSV, Parquet) of labels by path or name of the images.
        labels_columns: its columns: image,label or image,label,split; default the usual names.
        train: name of the folder of training images, if not a usual one.
        test: name of the folder of test images, if not a usual one.
        tiles: side of tiles in pixels, 0: none; default as for the run.
        max_skipped: share of unusable images that is accepted (default 0.05).
        follow_links: read what symbolic links in a folder lead to outside it (default false).
        max_pixels: skip images of more pixels, which would fill the memory (default 100000000).
        limit: use a random, class-balanced subset of N training images.
        imbalance: long-tailed subset: largest class by smallest; 1: balanced, 0: as they are.
        test_share: share of each class held out for testing, if no test split (default 0.2).
        split_by: keep together when held out: parent (folder) or a column of --labels, as patient.
        seed: seed of every random draw (default 0).
        given: table of what is labelled already, as for --labels.
        output: CSV file; default RUN/select.csv, or select.csv.

    Returns:
        ``path`` of the CSV file and its rows, ``selected``: ``{image, order, cluster, cluster_size, typicality}`` in
        the order of choice, from 1 (`mocokit.reporting.selection`); ``candidates``, how many images there were to
        choose from, and ``given``, how many more are labelled already; ``wall_s``, ``config``, ``data_fingerprint``,
        ``versions``.

    Raises:
        UserError: no encoder there, fewer images than are to be chosen, a table that names none of them, an output
            that exists, or a wrong option.
    """

def study(
    data: str,
    *,
    out: str | None = None,
    sizes: str | None = None,
    imbalance: str = "0",
    labels: str = "all",
    methods: str = "all",
    seeds: int = 3,
    steps: int | None = None,
    time_budget: str | None = None,
    finetune_steps: int = 1000,
    recipe: str = "auto",
    backbone: str | None = None,
    weights: str | None = None,
    labels_file: str | None = None,
    labels_columns: str | None = None,
    train: str | None = None,
    test: str | None = None,
    test_share: float = 0.2,
    split_by: str | None = None,
    tiles: int = 0,
    max_skipped: float = 0.05,
    follow_links: bool = False,
    max_pixels: int = 100000000,
    device: Literal["cpu", "cuda", "mps"] | None = None,
    trial_cpus: int = 1,
    trial_gpus: float = 0.0,
    ray_address: str | None = None,
) -> dict[str, Any]:
    """Find out when MoCo pays on labelled images: subsets of them, long-tailed ones too, several seeds, every method.

    Test images are the data's, or are held out once, and are in no subset. What is in ``out`` is kept: with more sizes,
    seeds, labels or methods, trials are added.

    Args:
        data: labelled images, as for `mocokit.pretrain`.
        out: directory of the study; default studies/NAME.
        sizes: numbers of training images, e.g. 500,2000,8000; default a quarter, half and all.
        imbalance: largest class by smallest, e.g. 1,10,100; 1: balanced, 0: classes as they are (default 0).
        labels: labels of each class, e.g. 10,100,all; all: those of the subset (default all).
        methods: what to compare, names with commas between; a wrong name lists all (default all).
        seeds: how often each trial is done, with other seeds (default 3).
        steps: steps of each pretraining; default as for all images.
        time_budget: time for each pretraining in place of steps, e.g. 5m.
        finetune_steps: steps of each training on labels, about (default 1000).
        recipe: auto, a recipe's name or a recipe file (default auto).
        backbone: timm model name, e.g. resnet18_cifar; default as for pretrain.
        weights: weights as for pretrain, to compare as they are and continued, too.
        labels_file: table of labels, as --labels of other verbs.
        labels_columns: its columns: image,label or image,label,split; default the usual names.
        train: name of the folder of training images, if not a usual one.
        test: name of the folder of test images, if not a usual one.
        test_share: share of each class held out for testing, if no test split (default 0.2).
        split_by: keep together when held out: parent (folder) or a column of --labels, as patient.
        tiles: cut images into tiles of about N x N pixels; 0: leave them whole (default 0).
        max_skipped: share of unusable images that is accepted (default 0.05).
        follow_links: read what symbolic links in a folder lead to outside it (default false).
        max_pixels: skip images of more pixels, which would fill the memory (default 100000000).
        device: where to compute; default the fastest here (cpu, cuda, mps).
        trial_cpus: cores, and threads, of each trial (default 1).
        trial_gpus: GPUs of each trial; 0.5: two share one (default 0.0).
        ray_address: a Ray cluster that runs, e.g. auto or HOST:6379.

    Returns:
        ``out``, the directory with ``study.yaml``, ``trials.csv``, ``summary.csv``, ``answer.md`` and the plots;
        ``trials``, how many are ``done`` and the last line of each that ``failed`` twice, by name; ``answer``, the
        sentences; ``wall_s``, ``config``, ``data_fingerprint``, ``versions``.

    Raises:
        UserError: no labels in the data, a subset does not fit, a wrong option, or ``out`` holds another study.
        Interrupted: the user stopped it; the same call goes on.
    """
