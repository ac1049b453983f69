"""The options of every verb, declared once; flags, YAML, help, signatures and docs derive from these classes.

Nothing here imports torch.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

from mocokit.options import Decides, Option, fields_of

MAX_IMAGE_SIZE = 4096

DATA_KINDS = "digits, cifar10, a folder, an archive, a NumPy file, Parquet or tar shards, hf:NAME"

DeviceName = Literal["cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16"]

share = partial(Option, low=0, high=1)
side = partial(Option, low=4, high=MAX_IMAGE_SIZE)
place = partial(Option, positional=True, path=True)
reading = partial(Option, decides="reading")
naming = partial(Option, identity=False, decides="labels")
holding_out = partial(Option, identity=False, decides="held out")

# Options that several verbs have.
Device = Annotated[DeviceName | None, Option("where to compute; default the fastest here")]
Threads = Annotated[
    int | None,
    Option("threads to compute with; default: the cores that others leave", "machine", low=1, identity=False),
]
Run = Annotated[str, place("run directory or encoder.safetensors; timm:NAME; or a weights file (with --backbone)")]
Backbone = Annotated[str | None, Option("timm model name of the network in a weights file")]
ImageSize = Annotated[int | None, side("side of the images for timm:NAME or a weights file; default as trained")]
Data = Annotated[str, place("images, named as for pretrain")]
Limit = Annotated[
    int | None, Option("use a random, class-balanced subset of N training images", low=1, decides="subset")
]
LONG_TAILED = "long-tailed subset: largest class by smallest; 1: balanced, 0: as they are"
Imbalance = Annotated[float | None, Option(LONG_TAILED, "data", low=0, high=1e6, decides="subset")]
TimeBudget = Annotated[str | None, Option("time for the whole command, e.g. 90s, 6m, 2h")]
Seed = Annotated[int, Option("seed of every random draw", low=0, decides="held out")]
MaxSkipped = Annotated[
    float, share("share of unusable images that is accepted", "data", identity=False, decides="reading")
]
FollowLinks = Annotated[bool, reading("read what symbolic links in a folder lead to outside it", "data")]
MaxPixels = Annotated[int, reading("skip images of more pixels, which would fill the memory", "data", low=1)]
Tiles = Annotated[int, Option("cut images into tiles of about N x N pixels; 0: leave them whole", "data", low=0)]
RunTiles = Annotated[int | None, Option("side of tiles in pixels, 0: none; default as for the run", "data", low=0)]
Labels = Annotated[str | None, naming("table (CSV, TSV, Parquet) of labels by path or name of the images", path=True)]
LabelsColumns = Annotated[
    str | None, naming("its columns: image,label or image,label,split; default the usual names", "data")
]
TrainFolder = Annotated[str | None, naming("name of the folder of training images, if not a usual one", "data")]
TestFolder = Annotated[str | None, naming("name of the folder of test images, if not a usual one", "data")]
TestShare = Annotated[
    float, holding_out("share of each class held out for testing, if no test split", "data", low=0.01, high=0.9)
]
SplitBy = Annotated[
    str | None, holding_out("keep together when held out: parent (folder) or a column of --labels, as patient", "data")
]
Neighbours = Annotated[int, Option("nearest neighbours of each image (kNN)", "measuring", low=1)]
KnnTemperature = Annotated[float, Option("temperature of the neighbours' weights (kNN)", "measuring", low=1e-3)]
Baseline = Annotated[bool, Option("also measure what it is compared with, which takes most of the time")]


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Learn an encoder from images without labels."""

    NOTE: ClassVar = (
        "What is not given comes from the recipe, or is derived from images and machine: config.yaml says why."
    )
    DERIVES: ClassVar = True  # fields without a default, in `mocokit.auto`

    data: Annotated[str, place(f"what to learn from: {DATA_KINDS}", identity=False)]
    out: Annotated[str, Option("run directory", identity=False, path=True)]
    recipe: Annotated[str, Option("auto, a recipe's name or a recipe file", path=True)] = "auto"

    weights: Annotated[
        str | None,
        Option("start from timm, timm:NAME, a run, or a weights file (with --backbone)", identity=False, path=True),
    ] = None
    backbone: Annotated[str, Option("timm model name, e.g. resnet18_cifar or resnet50")]
    zero_init_last: Annotated[bool, Option("residual branches end in a batch norm that starts at zero", "model")] = True
    image_size: Annotated[int, side("side of the encoder's square images, in pixels")]
    view_size: Annotated[int, side("side of the views at the start: small ones are fast", "views")]
    view_size_end: Annotated[int, side("side of the views at the end, reached in a few steps", "views")]
    head: Annotated[
        Literal["linear", "mlp", "v3-resnet", "v3-vit"],
        Option("projection head: linear (v1), mlp (v2); v3: with batch norm and a prediction head", "model"),
    ]
    head_hidden: Annotated[int, Option("width of hidden layers, if any; 0: as the features", "model", low=0)] = 0
    head_dim: Annotated[int, Option("dimension of the contrasted embedding", "model", low=2)]
    bn_splits: Annotated[
        int, Option("groups of split batch norm, over all processes; 1: plain; 0: its statistics stay", "model", low=0)
    ]
    queue_size: Annotated[int, Option("negatives in the queue (K); 0 (v3): those of the batch", "model", low=0)]
    momentum: Annotated[float, share("momentum of the key encoder (m) at the start", "model")]
    momentum_end: Annotated[float, share("momentum at the end, reached on half a cosine", "model")]
    temperature: Annotated[float, Option("softmax temperature of InfoNCE (tau)", "model", low=1e-3, high=10)]
    symmetric: Annotated[bool, Option("let both views be the query in turn (twice the work per step)", "model")]

    views: Annotated[Literal["v1", "v2", "v3"], Option("strengths and order of the colours of that paper", "views")]
    crop_min: Annotated[float, Option("smallest share of the image's area in a view", "views", low=0.01, high=1)]
    flip_p: Annotated[float, share("probability of a horizontal flip", "views")]
    jitter_strength: Annotated[float, Option("factor on the colour jitter; 0: none", "views", low=0, high=2)]
    gray_p: Annotated[float, share("probability of turning a view gray", "views")]
    blur_p: Annotated[float, share("probability of a Gaussian blur of view 1", "views")]
    blur_p2: Annotated[float, share("probability of a Gaussian blur of view 2", "views")]
    solarize_p2: Annotated[float, share("probability of solarizing view 2", "views")]

    choose_views: Annotated[bool, Option("choose colours and crops by four short runs", "views")] = False
    epochs: Annotated[int, Option("passes over the images", low=1)]
    steps: Annotated[int, Option("optimizer steps in all, instead of epochs", "schedule", low=1)]
    batch_size: Annotated[int, Option("images per step, over all processes", low=2)]
    optimizer: Annotated[
        Literal["sgd", "lars", "larc", "adamw", "muon"],
        Option("sgd (v1, v2), lars (v3, ResNet), larc (never exceeds the rate), adamw (v3, ViT) or muon", "schedule"),
    ]
    lr: Annotated[float, Option("peak learning rate", "schedule", low=0, high=1e6)]
    weight_decay: Annotated[float, Option("weight decay", "schedule", low=0, high=1e3)]
    sgd_momentum: Annotated[float, share("momentum of SGD, LARS, LARC and Muon", "schedule", high=0.9999)] = 0.9
    trust: Annotated[float, share("trust coefficient of LARS and LARC", "schedule")] = 0.001
    schedule: Annotated[
        Literal["cosine", "step"], Option("learning-rate schedule: cosine (v2) or step (v1)", "schedule")
    ]
    warmup_steps: Annotated[int, Option("steps of linear warm-up before the schedule", "schedule", low=0)]

    time_budget: TimeBudget = None
    turns: Annotated[
        str | None,
        Option("STEP:LEFT,...: steps that were left when, to repeat a run with a time budget as it went", "schedule"),
    ] = None
    limit: Limit = None
    imbalance: Imbalance = None
    labels: Labels = None
    labels_columns: LabelsColumns = None
    train: TrainFolder = None
    test: TestFolder = None
    test_share: TestShare = 0.2
    split_by: SplitBy = None
    tiles: Tiles = 0
    stream: Annotated[bool, Option("read images anew each epoch; the cache holds only a sample", "data")] = False
    max_skipped: MaxSkipped = 0.05
    follow_links: FollowLinks = False
    max_pixels: MaxPixels = 100_000_000
    seed: Seed = 0

    device: Annotated[DeviceName, Option("where to compute", identity=False)]
    devices: Annotated[int, Option("processes on this machine, one per GPU", "machine", low=1, identity=False)] = 1
    threads: Threads = None
    precision: Annotated[Precision, Option("arithmetic of the encoders", "machine")]
    compile: Annotated[bool, Option("compile the encoders: faster after a minute", "machine", identity=False)]
    cuda_graphs: Annotated[bool, Option("run compiled encoders as CUDA graphs", "machine", identity=False)] = False
    workers: Annotated[int, Option("processes that decode and load images", "machine", low=0, identity=False)]
    monitor_every: Annotated[int, Option("epochs between quality checks; 0: none", "measuring", low=0)]
    knn_k: Neighbours = 200
    knn_temperature: KnnTemperature = 0.1
    knn_images: Annotated[
        int, Option("most images and queries of the final kNN, twice as many for scores; 0: all", "measuring", low=0)
    ]
    evaluate: Annotated[bool, Option("measure encoder and baselines at the end", "measuring", identity=False)] = True
    report: Annotated[
        bool,
        Option("write report.html at the end, of 2,000 images at most (extra report)", "measuring", identity=False),
    ]
    log_every: Annotated[int, Option("steps between rows of metrics.csv", "measuring", low=1)] = 50
    histograms: Annotated[bool, Option("pictures in TensorBoard, of weights too", "measuring", identity=False)] = True
    checkpoint_every: Annotated[float, Option("seconds between checkpoints", "machine", low=0, identity=False)] = 60.0
    logger: Annotated[
        Literal["wandb", "mlflow"] | None,
        Option("tracker that also gets every row of metrics.csv; an extra each", "measuring", identity=False),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Options of every verb that uses a run."""

    run: Run
    backbone: Backbone = None
    image_size: ImageSize = None
    device: Device = None
    threads: Threads = None


@dataclass(frozen=True, kw_only=True)
class SourceConfig(RunConfig):
    """Options of every verb that reads images for a run."""

    data: Data
    labels: Labels = None
    labels_columns: LabelsColumns = None
    train: TrainFolder = None
    test: TestFolder = None
    tiles: RunTiles = None
    max_skipped: MaxSkipped = 0.05
    follow_links: FollowLinks = False
    max_pixels: MaxPixels = 100_000_000


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(SourceConfig):
    """Options of every verb that measures a run on images."""

    limit: Limit = None
    imbalance: Imbalance = None
    test_share: TestShare = 0.2
    split_by: SplitBy = None
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class KnnConfig(ImagesConfig):
    """Accuracy by nearest neighbours, beside random initialisation, raw pixels and a colour histogram."""

    k: Neighbours = 200
    temperature: KnnTemperature = 0.1
    baseline: Baseline = True


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(ImagesConfig):
    """Linear classification on frozen features."""

    protocol: Annotated[
        Literal["fast", "sgd"],
        Option("fast: logistic regression on features extracted once; sgd: trained on augmented images"),
    ] = "fast"
    labels_per_class: Annotated[int | None, Option("train on N labelled images per class", low=1)] = None
    label_fraction: Annotated[float | None, Option("train on this share of the labels", low=1e-6, high=1)] = None
    repeats: Annotated[int, Option("random choices of the few labels", low=1, high=1000)] = 5
    epochs: Annotated[int, Option("sgd: passes over the images", "schedule", low=1)] = 100
    batch_size: Annotated[int, Option("sgd: images per step", "schedule", low=1)] = 256
    lr: Annotated[float, Option("sgd: peak learning rate", "schedule", low=0, high=1e6)] = 30.0
    baseline: Baseline = True


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(ImagesConfig):
    """Train encoder and classifier on labels."""

    out: Annotated[str | None, Option("directory; default RUN/finetune or RUN/from-scratch", path=True)] = None
    from_scratch: Annotated[bool, Option("train from random weights only")] = False
    baseline: Annotated[bool, Option("also train from random weights, to compare")] = True
    epochs: Annotated[int, Option("passes over the images at most", low=1)] = 50
    time_budget: TimeBudget = None
    batch_size: Annotated[int | None, Option("images per step; default 64 or fewer", low=2)] = None
    lr: Annotated[float | None, Option("peak learning rate; default 0.001 at 512 features", low=0, high=1e3)] = None
    layer_decay: Annotated[float, Option("factor on the learning rate per layer", "schedule", low=1e-3, high=1)] = 1.0
    weight_decay: Annotated[float, Option("weight decay of AdamW", "schedule", low=0, high=1e3)] = 0.05
    patience: Annotated[int, Option("stop after N epochs without progress; 0: never", "schedule", low=0)] = 20


@dataclass(frozen=True, kw_only=True)
class ScorecardConfig(ImagesConfig):
    """How good the features are, without labels."""

    images: Annotated[int, Option("most images that are scored; retrieval depends on it", low=16)] = 1000


@dataclass(frozen=True, kw_only=True)
class ReportConfig(ImagesConfig):
    """One page to look at: figures, a map of the images, and what to look into."""

    data: Annotated[str | None, place("images; default those of the run")] = None  # type: ignore[assignment]
    output: Annotated[str | None, Option("the page; default RUN/report.html", short="-o", path=True)] = None
    images: Annotated[int, Option("most images that are looked at, drawn at random", low=3, high=100_000)] = 100_000
    clusters: Annotated[
        int | None, Option("clusters; default the root of a tenth of the images, 2 to 20", low=1, high=100)
    ] = None


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(SourceConfig):
    """Write a table of features."""

    output: Annotated[str, Option("file of features: .parquet, .npz or .npy", short="-o", path=True)]
    dtype: Annotated[Literal["float32", "float16"], Option("number format of the features")] = "float32"
    precision: Annotated[
        Precision | None,
        Option("arithmetic of the encoder; default: on a CPU what is clearly faster there, else fp32", "machine"),
    ] = None
    map: Annotated[bool, Option("also columns x, y, cluster and neighbours, as in a report (.parquet)")] = False
    batch_size: Annotated[int, Option("images encoded at once", "machine", low=1)] = 256
    workers: Annotated[int | None, Option("processes that decode images; 0: none", "machine", low=0)] = None


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Find similar images and near-duplicates."""

    features: Annotated[str, place("file of features that mocokit embed wrote")]
    queries: Annotated[tuple[str, ...], place("image files, or rows of the features")] = ()
    k: Annotated[int, Option("neighbours of each query", low=1)] = 10
    duplicates: Annotated[
        str | None, Option("list pairs with at least this cosine; auto: far nearer than the nearest usually is")
    ] = None
    montage: Annotated[str | None, Option("PNG file of the queries with their neighbours", path=True)] = None
    run: Annotated[str | None, Option("run directory that embeds the queries, if it has moved", path=True)] = None
    data: Annotated[str | None, Option("images of the features, if they have moved", path=True)] = None
    follow_links: FollowLinks = False
    max_pixels: MaxPixels = 100_000_000
    device: Device = None


@dataclass(frozen=True, kw_only=True)
class SelectConfig(ImagesConfig):
    """Choose which images to label first."""

    count: Annotated[int, Option("how many images to choose", short="-n", low=1)]
    given: Annotated[str | None, Option("table of what is labelled already, as for --labels", path=True)] = None
    output: Annotated[str | None, Option("CSV file; default RUN/select.csv, or select.csv", short="-o", path=True)] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the encoder for timm or ONNX."""

    run: Run
    backbone: Backbone = None
    image_size: ImageSize = None
    format: Annotated[Literal["timm", "onnx"], Option("timm: weights for timm or torchvision; onnx: a graph")]
    output: Annotated[str | None, Option("directory; default RUN/export/FORMAT", short="-o", path=True)] = None
    data: Annotated[str | None, Option("images to check the export with; default synthetic ones", path=True)] = None
    follow_links: FollowLinks = False
    max_pixels: MaxPixels = 100_000_000


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """When MoCo pays: many trials on subsets of labelled images, and an answer."""

    data: Data
    out: Annotated[str | None, Option("directory of the study; default studies/NAME", path=True)] = None
    sizes: Annotated[
        str | None, Option("numbers of training images, e.g. 500,2000,8000; default a quarter, half and all")
    ] = None
    imbalance: Annotated[
        str, Option("largest class by smallest, e.g. 1,10,100; 1: balanced, 0: classes as they are")
    ] = "0"
    labels: Annotated[str, Option("labels of each class, e.g. 10,100,all; all: those of the subset")] = "all"
    methods: Annotated[str, Option("what to compare, names with commas between; a wrong name lists all")] = "all"
    seeds: Annotated[int, Option("how often each trial is done, with other seeds", low=1, high=1000)] = 3
    steps: Annotated[int | None, Option("steps of each pretraining; default as for all images", low=1)] = None
    time_budget: Annotated[str | None, Option("time for each pretraining in place of steps, e.g. 5m")] = None
    finetune_steps: Annotated[int, Option("steps of each training on labels, about", low=1)] = 1000
    recipe: Annotated[str, Option("auto, a recipe's name or a recipe file", path=True)] = "auto"
    backbone: Annotated[str | None, Option("timm model name, e.g. resnet18_cifar; default as for pretrain")] = None
    weights: Annotated[
        str | None, Option("weights as for pretrain, to compare as they are and continued, too", path=True)
    ] = None
    labels_file: Annotated[str | None, Option("table of labels, as --labels of other verbs", path=True)] = None
    labels_columns: LabelsColumns = None
    train: TrainFolder = None
    test: TestFolder = None
    test_share: TestShare = 0.2
    split_by: SplitBy = None
    tiles: Tiles = 0
    max_skipped: MaxSkipped = 0.05
    follow_links: FollowLinks = False
    max_pixels: MaxPixels = 100_000_000
    device: Device = None
    trial_cpus: Annotated[int, Option("cores, and threads, of each trial", "machine", low=1)] = 1
    trial_gpus: Annotated[float, Option("GPUs of each trial; 0.5: two share one", "machine", low=0, high=1024)] = 0.0
    ray_address: Annotated[str | None, Option("a Ray cluster that runs, e.g. auto or HOST:6379", "machine")] = None


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """List or remove the decoded images that are kept."""

    clear: Annotated[bool, Option("remove all that no command uses")] = False


VERBS: dict[str, type] = {  # their docstrings are what --help says of them
    "pretrain": PretrainConfig,
    "knn": KnnConfig,
    "probe": ProbeConfig,
    "finetune": FinetuneConfig,
    "scorecard": ScorecardConfig,
    "report": ReportConfig,
    "embed": EmbedConfig,
    "search": SearchConfig,
    "select": SelectConfig,
    "export": ExportConfig,
    "study": StudyConfig,
    "cache": CacheConfig,
}
FIELDS = fields_of(PretrainConfig)


def deciding(*what: Decides) -> tuple[str, ...]:
    """The options of a run that decide these things of its images."""
    return tuple(name for name, option in FIELDS.items() if option.decides in what)
