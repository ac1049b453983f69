"""A short run whose encoder is only compared with others, and leaves no files."""

from mocokit.config import PretrainConfig
from mocokit.console import progress
from mocokit.data.store import ImageSet
from mocokit.data.streaming import StreamingImages
from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.training.loop import Trainer, create_fabric
from mocokit.training.pretraining import Pretraining, pretraining_loader


def train_briefly(config: PretrainConfig, spec: EncoderSpec, images: ImageSet | StreamingImages) -> Encoder:
    """The encoder after all steps of ``config``, in evaluation mode, on its device."""
    task = Pretraining(config, spec)
    loader = pretraining_loader(config, images)
    with progress("short run to choose views") as report:
        Trainer(task, create_fabric(config.device, config.precision)).fit(loader, config.steps, report=report)
    return Encoder(task.moco.backbone, spec).eval()
