"""The options of every verb, declared once; flags, YAML, help text and docs derive from these classes.

Nothing here imports torch.
"""

from dataclasses import dataclass

from mocokit.options import fields_of, option

MAX_IMAGE_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything a pretraining run depends on. Fields without a default are derived by `resolve`."""

    data: str = option(
        "what to learn from: digits, cifar10, a folder, an archive, a NumPy file, Parquet or tar shards, hf:NAME"
    )
    out: str = option("run directory", identity=False)
    recipe: str = option("auto, a recipe's name or a recipe file", default="auto")

    backbone: str = option("timm model name, e.g. resnet18_cifar or resnet50")
    image_size: int = option(
        "side of the square images that the encoder takes in, in pixels", low=4, high=MAX_IMAGE_SIZE
    )
    view_size: int = option(
        "side of the views at the start of training, in pixels: small ones are fast",
        low=4,
        high=MAX_IMAGE_SIZE,
    )
    view_size_end: int = option(
        "side of the views at the end, reached in a few steps", low=4, high=MAX_IMAGE_SIZE
    )
    head: str = option(
        "projection head: linear (v1), mlp (v2), or with batch norm and a prediction head, v3-resnet or v3-vit",
        choices=("linear", "mlp", "v3-resnet", "v3-vit"),
    )
    head_hidden: int = option("width of the heads' hidden layers; 0: that of the features", default=0, low=0)
    head_dim: int = option("dimension of the contrasted embedding", low=2)
    bn_splits: int = option(
        "groups of split batch norm, over all processes; 1 is plain batch norm over the whole batch", low=1
    )
    queue_size: int = option(
        "negatives in the queue (K); 0 for none, as in v3: the batch's other keys are the negatives", low=0
    )
    momentum: float = option("momentum of the key encoder (m) at the start", low=0, high=1)
    momentum_end: float = option("momentum at the end, on half a cosine from the start", low=0, high=1)
    temperature: float = option("softmax temperature of InfoNCE (tau)", low=1e-3, high=10)
    symmetric: bool = option("let both views be the query in turn (twice the work a step)")

    views: str = option("view set of the paper: v1, v2 or v3", choices=("v1", "v2", "v3"))
    crop_min: float = option("smallest share of the image's area that a view shows", low=0.01, high=1)
    flip_p: float = option("probability of a horizontal flip", low=0, high=1)
    jitter_strength: float = option("factor on the view set's colour jitter; 0 turns it off", low=0, high=2)
    gray_p: float = option("probability of turning a view gray", low=0, high=1)
    blur_p: float = option("probability of a Gaussian blur of view 1", low=0, high=1)
    blur_p2: float = option("probability of a Gaussian blur of view 2", low=0, high=1)
    solarize_p2: float = option("probability of solarizing view 2", low=0, high=1)

    epochs: int = option("passes over the images", low=1)
    steps: int = option("optimizer steps in all, instead of epochs", low=1)
    batch_size: int = option("images a step, over all processes", low=2)
    optimizer: str = option(
        "sgd (v1, v2), lars (v3, ResNet), larc (lars that never exceeds the learning rate) or adamw (v3, ViT)",
        choices=("sgd", "lars", "larc", "adamw"),
    )
    lr: float = option("peak learning rate", low=0, high=1e6)
    weight_decay: float = option("weight decay", low=0, high=1e3)
    sgd_momentum: float = option("momentum of SGD, LARS and LARC", default=0.9, low=0, high=1)
    trust: float = option("trust coefficient of LARS and LARC", default=0.001, low=0, high=1)
    schedule: str = option("learning-rate schedule: cosine (v2) or step (v1)", choices=("cosine", "step"))
    warmup_steps: int = option("steps of linear warm-up before the schedule", low=0)

    time_budget: str | None = option("wall time for the whole command, e.g. 90s, 6m, 2h", default=None)
    limit: int | None = option("learn from a seeded, class-balanced subset of N images", default=None, low=1)
    stream: bool = option(
        "read the images anew each epoch, for more of them than the cache directory has room for",
        default=False,
    )
    max_skipped: float = option(
        "share of unusable images that is tolerated", default=0.05, low=0, high=1, identity=False
    )
    seed: int = option("seed of every random draw", default=0, low=0)

    device: str = option("where to compute", choices=("cpu", "cuda", "mps"))
    devices: int = option(
        "processes on this machine that share each batch, one a GPU", default=1, low=1, identity=False
    )
    precision: str = option("arithmetic of the encoders", choices=("fp32", "bf16"))
    compile: bool = option("compile the encoders: faster steps after a minute's wait", identity=False)
    cuda_graphs: bool = option(
        "launch the kernels of compiled encoders together, as CUDA graphs", default=False, identity=False
    )
    workers: int = option("processes that decode and load images", low=0, identity=False)
    monitor_every: int = option("epochs between quality checks; 0 turns them off", low=0)
    knn_k: int = option("neighbours of the kNN monitor", default=200, low=1)
    knn_temperature: float = option("temperature of the kNN vote", default=0.1, low=1e-3)
    knn_images: int = option(
        "images that vote, and that ask, at most in the final kNN figures; 0: all", low=0
    )
    log_every: int = option("steps between rows of metrics.csv", default=50, low=1)
    histograms: bool = option(
        "write weight histograms to TensorBoard each epoch", default=True, identity=False
    )
    checkpoint_every: float = option("seconds between checkpoints", default=60.0, low=0, identity=False)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Options of every verb that uses a run."""

    run: str = option("run directory, or its encoder.safetensors")
    device: str | None = option("where to compute", default=None, choices=("cpu", "cuda", "mps"))


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(RunConfig):
    """Options of every verb that measures a run on images."""

    data: str = option("images, named as for pretrain")
    limit: int | None = option(
        "use a seeded, class-balanced subset of N training images", default=None, low=1
    )
    max_skipped: float = option("share of unusable images that is tolerated", default=0.05, low=0, high=1)
    seed: int = option("seed of every random draw", default=0, low=0)


@dataclass(frozen=True, kw_only=True)
class KnnConfig(ImagesConfig):
    """Options of ``mocokit knn``."""

    k: int = option("neighbours that vote", default=200, low=1)
    temperature: float = option("temperature of the vote", default=0.1, low=1e-3)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(ImagesConfig):
    """Options of ``mocokit probe``."""

    protocol: str = option(
        "fast: logistic regression on features extracted once; sgd: trained on augmented images",
        default="fast",
        choices=("fast", "sgd"),
    )
    labels_per_class: int | None = option("train on N labelled images of each class", default=None, low=1)
    label_fraction: float | None = option(
        "train on this share of the labels, class-balanced", default=None, low=1e-6, high=1
    )
    repeats: int = option("random choices of the few labels, for the interval", default=5, low=1, high=1000)
    epochs: int = option("sgd: passes over the images", default=100, low=1)
    batch_size: int = option("sgd: images a step", default=256, low=1)
    lr: float = option("sgd: peak learning rate", default=30.0, low=0, high=1e6)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(ImagesConfig):
    """Options of ``mocokit finetune``."""

    out: str | None = option(
        "directory of the trained encoder; default RUN/finetune, or RUN/from-scratch", default=None
    )
    from_scratch: bool = option("train only the supervised baseline, from random weights", default=False)
    baseline: bool = option("also train from random weights, with the same budget, to compare", default=True)
    epochs: int = option("passes over the images at most", default=50, low=1)
    batch_size: int | None = option(
        "images a step; default 64, as few as 16 where an epoch has under 32 steps", default=None, low=2
    )
    lr: float | None = option(
        "peak learning rate of AdamW; default by the encoder, 0.001 at 512 features",
        default=None, low=0, high=1e3,
    )  # fmt: skip
    layer_decay: float = option(
        "factor on the learning rate from each layer to the one before; 1 trains all alike",
        default=1.0, low=1e-3, high=1,
    )  # fmt: skip
    weight_decay: float = option("weight decay of AdamW", default=0.05, low=0, high=1e3)
    patience: int = option(
        "stop after N epochs without a better validation accuracy; 0 never", default=20, low=0
    )


@dataclass(frozen=True, kw_only=True)
class ScorecardConfig(ImagesConfig):
    """Options of ``mocokit scorecard``."""

    images: int = option("images that are scored at most; retrieval depends on it", default=1000, low=16)


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(RunConfig):
    """Options of ``mocokit embed``."""

    data: str = option("images, named as for pretrain")
    output: str = option("file of features: .parquet, .npz or .npy", short="-o")
    dtype: str = option("numbers of the features", default="float32", choices=("float32", "float16"))
    precision: str = option(
        "arithmetic of the encoder: bf16 keeps two to three digits and is up to twice as fast, on hardware that has it",
        default="fp32",
        choices=("fp32", "bf16"),
    )
    batch_size: int = option("images encoded at once", default=256, low=1)
    max_skipped: float = option("share of unusable images that is tolerated", default=0.05, low=0, high=1)
    workers: int | None = option("processes that decode images; 0 for none", default=None, low=0)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Options of ``mocokit search``."""

    features: str = option("file of features that mocokit embed wrote")
    queries: tuple[str, ...] = option("image files, or row numbers of the features", default=())
    k: int = option("neighbours of each query", default=10, low=1)
    duplicates: float | None = option(
        "list the pairs of images whose cosine is at least this", default=None, low=-1, high=1
    )
    montage: str | None = option("PNG file of the queries beside their neighbours", default=None)
    run: str | None = option("run directory that embeds the queries, if it has moved", default=None)
    data: str | None = option("images of the features, if they have moved", default=None)
    device: str | None = option("where to compute", default=None, choices=("cpu", "cuda", "mps"))


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of ``mocokit export``."""

    run: str = option("run directory, or its encoder.safetensors")
    format: str = option("timm: weights for timm or torchvision; onnx: a graph", choices=("timm", "onnx"))
    output: str | None = option(
        "directory of the export; default RUN/export/FORMAT", default=None, short="-o"
    )
    data: str | None = option("images to check the export with; default made ones", default=None)


FIELDS = fields_of(PretrainConfig)
