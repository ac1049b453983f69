"""The options of every verb, declared once; flags, YAML, help, signatures and docs derive from these classes.

Nothing here imports torch.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from mocokit.options import Option, fields_of

MAX_IMAGE_SIZE = 4096

DeviceName = Literal["cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16"]

# Options that several verbs have.
Device = Annotated[DeviceName | None, Option("where to compute; default the fastest here")]
Run = Annotated[str, Option("run directory, or its encoder.safetensors", positional=True)]
Data = Annotated[str, Option("images, named as for pretrain", positional=True)]
Seed = Annotated[int, Option("seed of every random draw", low=0)]
Workers = Annotated[int | None, Option("processes that decode images; 0 for none", low=0)]
MaxSkipped = Annotated[float, Option("largest share of unusable images that is accepted", low=0, high=1)]
Neighbours = Annotated[int, Option("nearest neighbours of each image (kNN)", low=1)]
KnnTemperature = Annotated[float, Option("temperature of the neighbours' weights (kNN)", low=1e-3)]


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything a pretraining run depends on. Fields without a default are derived by `mocokit.auto`."""

    DERIVES: ClassVar = True

    data: Annotated[
        str,
        Option(
            "what to learn from: digits, cifar10, a folder, an archive, a NumPy file, Parquet or tar shards, hf:NAME",
            positional=True,
        ),
    ]
    out: Annotated[str, Option("run directory", identity=False)]
    recipe: Annotated[str, Option("auto, a recipe's name or a recipe file")] = "auto"

    backbone: Annotated[str, Option("timm model name, e.g. resnet18_cifar or resnet50")]
    image_size: Annotated[
        int, Option("side of the square images that the encoder takes, in pixels", low=4, high=MAX_IMAGE_SIZE)
    ]
    view_size: Annotated[
        int,
        Option("side of the views at the start, in pixels: small ones are fast", low=4, high=MAX_IMAGE_SIZE),
    ]
    view_size_end: Annotated[
        int, Option("side of the views at the end, reached in a few steps", low=4, high=MAX_IMAGE_SIZE)
    ]
    head: Annotated[
        Literal["linear", "mlp", "v3-resnet", "v3-vit"],
        Option("projection head: linear (v1), mlp (v2); v3: with batch norm and a prediction head"),
    ]
    head_hidden: Annotated[
        int, Option("width of the heads' hidden layers; 0: that of the features", low=0)
    ] = 0
    head_dim: Annotated[int, Option("dimension of the contrasted embedding", low=2)]
    bn_splits: Annotated[
        int,
        Option(
            "groups of split batch norm, over all processes; 1: plain batch norm on the whole batch", low=1
        ),
    ]
    queue_size: Annotated[
        int,
        Option("negatives in the queue (K); 0 (v3): the other keys of the batch are the negatives", low=0),
    ]
    momentum: Annotated[float, Option("momentum of the key encoder (m) at the start", low=0, high=1)]
    momentum_end: Annotated[float, Option("momentum at the end, reached on half a cosine", low=0, high=1)]
    temperature: Annotated[float, Option("softmax temperature of InfoNCE (tau)", low=1e-3, high=10)]
    symmetric: Annotated[bool, Option("let both views be the query in turn (twice the work per step)")]

    views: Annotated[Literal["v1", "v2", "v3"], Option("augmentation of the paper")]
    crop_min: Annotated[float, Option("smallest share of the image's area in a view", low=0.01, high=1)]
    flip_p: Annotated[float, Option("probability of a horizontal flip", low=0, high=1)]
    jitter_strength: Annotated[
        float, Option("factor on the colour jitter of the views; 0: none", low=0, high=2)
    ]
    gray_p: Annotated[float, Option("probability of turning a view gray", low=0, high=1)]
    blur_p: Annotated[float, Option("probability of a Gaussian blur of view 1", low=0, high=1)]
    blur_p2: Annotated[float, Option("probability of a Gaussian blur of view 2", low=0, high=1)]
    solarize_p2: Annotated[float, Option("probability of solarizing view 2", low=0, high=1)]

    epochs: Annotated[int, Option("passes over the images", low=1)]
    steps: Annotated[int, Option("optimizer steps in all, instead of epochs", low=1)]
    batch_size: Annotated[int, Option("images per step, over all processes", low=2)]
    optimizer: Annotated[
        Literal["sgd", "lars", "larc", "adamw"],
        Option("sgd (v1, v2), lars (v3, ResNet), larc (never exceeds the learning rate) or adamw (v3, ViT)"),
    ]
    lr: Annotated[float, Option("peak learning rate", low=0, high=1e6)]
    weight_decay: Annotated[float, Option("weight decay", low=0, high=1e3)]
    sgd_momentum: Annotated[float, Option("momentum of SGD, LARS and LARC", low=0, high=1)] = 0.9
    trust: Annotated[float, Option("trust coefficient of LARS and LARC", low=0, high=1)] = 0.001
    schedule: Annotated[Literal["cosine", "step"], Option("learning-rate schedule: cosine (v2) or step (v1)")]
    warmup_steps: Annotated[int, Option("steps of linear warm-up before the schedule", low=0)]

    time_budget: Annotated[str | None, Option("time for the whole command, e.g. 90s, 6m, 2h")] = None
    limit: Annotated[int | None, Option("use a random, class-balanced subset of N images", low=1)] = None
    stream: Annotated[
        bool, Option("read the images anew each epoch, if they do not fit into the cache directory")
    ] = False
    max_skipped: Annotated[
        float, Option("largest share of unusable images that is accepted", low=0, high=1, identity=False)
    ] = 0.05
    seed: Seed = 0

    device: Annotated[DeviceName, Option("where to compute")]
    devices: Annotated[
        int, Option("processes on this machine that share each batch, one per GPU", low=1, identity=False)
    ] = 1
    precision: Annotated[Precision, Option("arithmetic of the encoders")]
    compile: Annotated[
        bool, Option("compile the encoders: faster steps after a minute's wait", identity=False)
    ]
    cuda_graphs: Annotated[
        bool, Option("launch the kernels of compiled encoders together, as CUDA graphs", identity=False)
    ] = False
    workers: Annotated[int, Option("processes that decode and load images", low=0, identity=False)]
    monitor_every: Annotated[int, Option("epochs between quality checks; 0: none", low=0)]
    knn_k: Neighbours = 200
    knn_temperature: KnnTemperature = 0.1
    knn_images: Annotated[
        int, Option("most images in the bank, and most queries, of the final kNN figures; 0: all", low=0)
    ]
    log_every: Annotated[int, Option("steps between rows of metrics.csv", low=1)] = 50
    histograms: Annotated[
        bool, Option("write weight histograms to TensorBoard each epoch", identity=False)
    ] = True
    checkpoint_every: Annotated[float, Option("seconds between checkpoints", low=0, identity=False)] = 60.0
    logger: Annotated[
        Literal["wandb", "mlflow"] | None,
        Option("experiment tracker that also gets every row of metrics.csv; an extra each", identity=False),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Options of every verb that uses a run."""

    run: Run
    device: Device = None


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(RunConfig):
    """Options of every verb that measures a run on images."""

    data: Data
    limit: Annotated[
        int | None, Option("use a random, class-balanced subset of N training images", low=1)
    ] = None
    max_skipped: MaxSkipped = 0.05
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class KnnConfig(ImagesConfig):
    """Options of ``mocokit knn``."""

    k: Neighbours = 200
    temperature: KnnTemperature = 0.1


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(ImagesConfig):
    """Options of ``mocokit probe``."""

    protocol: Annotated[
        Literal["fast", "sgd"],
        Option("fast: logistic regression on features extracted once; sgd: trained on augmented images"),
    ] = "fast"
    labels_per_class: Annotated[int | None, Option("train on N labelled images per class", low=1)] = None
    label_fraction: Annotated[
        float | None, Option("train on this share of the labels, class-balanced", low=1e-6, high=1)
    ] = None
    repeats: Annotated[
        int, Option("random choices of the few labels, for the interval", low=1, high=1000)
    ] = 5
    epochs: Annotated[int, Option("sgd: passes over the images", low=1)] = 100
    batch_size: Annotated[int, Option("sgd: images per step", low=1)] = 256
    lr: Annotated[float, Option("sgd: peak learning rate", low=0, high=1e6)] = 30.0


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(ImagesConfig):
    """Options of ``mocokit finetune``."""

    out: Annotated[
        str | None, Option("directory of the trained encoder; default RUN/finetune, or RUN/from-scratch")
    ] = None
    from_scratch: Annotated[bool, Option("train only the supervised baseline, from random weights")] = False
    baseline: Annotated[bool, Option("also train from random weights, with the same budget, to compare")] = (
        True
    )
    epochs: Annotated[int, Option("passes over the images at most", low=1)] = 50
    batch_size: Annotated[
        int | None, Option("images per step; default 64, down to 16 if an epoch has under 32 steps", low=2)
    ] = None
    lr: Annotated[
        float | None,
        Option("peak learning rate of AdamW; default by the encoder, 0.001 at 512 features", low=0, high=1e3),
    ] = None
    layer_decay: Annotated[
        float,
        Option(
            "factor on the learning rate from each layer to the one before; 1: all alike", low=1e-3, high=1
        ),
    ] = 1.0
    weight_decay: Annotated[float, Option("weight decay of AdamW", low=0, high=1e3)] = 0.05
    patience: Annotated[
        int, Option("stop after N epochs without a better validation accuracy; 0: never", low=0)
    ] = 20


@dataclass(frozen=True, kw_only=True)
class ScorecardConfig(ImagesConfig):
    """Options of ``mocokit scorecard``."""

    images: Annotated[int, Option("most images that are scored; retrieval depends on it", low=16)] = 1000


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(RunConfig):
    """Options of ``mocokit embed``."""

    data: Data
    output: Annotated[str, Option("file of features: .parquet, .npz or .npy", short="-o")]
    dtype: Annotated[Literal["float32", "float16"], Option("number format of the features")] = "float32"
    precision: Annotated[
        Precision,
        Option(
            "arithmetic of the encoder; bf16 keeps 2 to 3 digits, up to twice as fast where the hardware has it"
        ),
    ] = "fp32"
    batch_size: Annotated[int, Option("images encoded at once", low=1)] = 256
    max_skipped: MaxSkipped = 0.05
    workers: Workers = None


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Options of ``mocokit search``."""

    features: Annotated[str, Option("file of features that mocokit embed wrote", positional=True)]
    queries: Annotated[
        tuple[str, ...], Option("image files, or row numbers of the features", positional=True)
    ] = ()
    k: Annotated[int, Option("neighbours of each query", low=1)] = 10
    duplicates: Annotated[
        float | None, Option("list the pairs of images with at least this cosine similarity", low=-1, high=1)
    ] = None
    montage: Annotated[str | None, Option("PNG file of the queries with their neighbours")] = None
    run: Annotated[str | None, Option("run directory that embeds the queries, if it has moved")] = None
    data: Annotated[str | None, Option("images of the features, if they have moved")] = None
    device: Device = None


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of ``mocokit export``."""

    run: Run
    format: Annotated[Literal["timm", "onnx"], Option("timm: weights for timm or torchvision; onnx: a graph")]
    output: Annotated[
        str | None, Option("directory of the export; default RUN/export/FORMAT", short="-o")
    ] = None
    data: Annotated[str | None, Option("images to check the export with; default synthetic ones")] = None


VERBS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "knn": KnnConfig,
    "probe": ProbeConfig,
    "finetune": FinetuneConfig,
    "scorecard": ScorecardConfig,
    "embed": EmbedConfig,
    "search": SearchConfig,
    "export": ExportConfig,
}
FIELDS = fields_of(PretrainConfig)
