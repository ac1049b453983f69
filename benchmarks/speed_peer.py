"""The peers of `speed.py`: the notebook that mocokit grew from, as it stands, and what others would write.

The notebook: lightly's data set, MoCo v2 views through Pillow, loader workers, ResNet with split batch norm, memory
bank and loss, in a Lightning loop. Only sizes, device and the end of the run are set from outside.
"""

import copy
import time
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import timm
import torch
import torchvision
from speed_common import MEAN, STD, Result, Settings, StepClock, Stop, clusters, photographs, rate, settled
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

WIDTHS = {"resnet18_cifar": 1.0, "resnet18_narrow": 0.25}


class MocoModel(pl.LightningModule):
    """The notebook's model."""

    def __init__(self, width: float, epochs: int) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models import ResNetGenerator
        from lightly.models.modules.heads import MoCoProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        super().__init__()
        resnet = ResNetGenerator("resnet-18", width, num_splits=8)
        features = resnet.linear.in_features
        self.backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1))
        self.projection_head = MoCoProjectionHead(features, features, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128))
        self.epochs = epochs

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        from lightly.models.utils import batch_shuffle, batch_unshuffle, update_momentum

        (x_q, x_k), _, _ = batch
        update_momentum(self.backbone, self.backbone_momentum, 0.99)
        update_momentum(self.projection_head, self.projection_head_momentum, 0.99)
        q = self.projection_head(self.backbone(x_q).flatten(start_dim=1))
        k, shuffle = batch_shuffle(x_k)
        k = self.projection_head_momentum(self.backbone_momentum(k).flatten(start_dim=1))
        loss: torch.Tensor = self.criterion(q, batch_unshuffle(k, shuffle))
        self.log("train_loss_ssl", loss)
        return loss

    def on_train_epoch_end(self) -> None:
        histogram_weights(self)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=6e-2, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)]


def histogram_weights(module: pl.LightningModule) -> None:
    """What both of the notebook's models do after each epoch."""
    for name, parameters in module.named_parameters():
        module.logger.experiment.add_histogram(name, parameters, module.current_epoch)


class Watch(pl.Callback):
    """Hands a Lightning loop's steps to a clock."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.on_start()

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.on_end()


def _trainer(s: Settings, epochs: int, *callbacks: pl.Callback) -> pl.Trainer:
    accelerator = "gpu" if s.device == "cuda" else "cpu"
    return pl.Trainer(
        max_epochs=epochs, devices=1, accelerator=accelerator, default_root_dir=s.scratch, callbacks=list(callbacks)
    )


def _pretrain(s: Settings) -> tuple[StepClock, MocoModel]:
    from lightly.data import LightlyDataset
    from lightly.transforms import MoCoV2Transform

    transform = MoCoV2Transform(input_size=s.image_size, gaussian_blur=0.0)
    dataset = LightlyDataset(input_dir=str(s.train), transform=transform)
    loader = DataLoader(dataset, batch_size=s.batch_size, shuffle=True, drop_last=True, num_workers=s.workers)
    epochs = -(-(s.warmup + s.steps) // len(loader))
    model, clock = MocoModel(WIDTHS[s.backbone], epochs), StepClock(s)
    with suppress(Stop):
        _trainer(s, epochs, Watch(clock)).fit(model, loader)
    return clock, model


def first_step(s: Settings) -> Result:
    """Seconds from the command to the first training step."""
    import lightly.data
    import lightly.loss
    import lightly.models
    import lightly.transforms  # noqa: F401

    imported = time.time()
    clock, _ = _pretrain(s)
    return {"value": clock.first - s.started, "after_imports_s": clock.first - imported}


def pretrain(s: Settings) -> Result:
    """Images a second of the notebook's pretraining."""
    clock, model = _pretrain(s)
    parameters = sum(p.numel() for p in model.backbone.parameters())
    return {"value": clock.pace(), "precision": "fp32", "parameters": parameters}


def views_lightly(s: Settings) -> Result:
    """Views a second of lightly's MoCo v2 transform, through Pillow."""
    from lightly.transforms import MoCoV2Transform

    torch.set_num_threads(1)
    images = [v2.functional.to_pil_image(image) for image in photographs(s)]
    transform = MoCoV2Transform(input_size=s.image_size)  # two views of each image
    return {"value": rate(lambda: [transform(image) for image in images], 2 * len(images), s)}


def views_torchvision(s: Settings) -> Result:
    """Views a second of torchvision's transforms v2 on tensors, image by image."""
    torch.set_num_threads(1)
    images = photographs(s)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(s.image_size, scale=(0.2, 1.0), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(13, sigma=(0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.Normalize(MEAN, STD),
        ]
    )
    return {"value": rate(lambda: [transform(image) for image in images], len(images), s)}


def views_kornia(s: Settings) -> Result:
    """Views a second of kornia's batched augmentations."""
    import kornia.augmentation as K

    torch.set_num_threads(1)
    images = photographs(s)
    transform = nn.Sequential(
        K.RandomResizedCrop((s.image_size, s.image_size), scale=(0.2, 1.0)),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((13, 13), (0.1, 2.0), p=0.5),
        K.RandomHorizontalFlip(p=0.5),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    return {"value": rate(lambda: transform(images.float() / 255), len(images), s)}


def _transform(s: Settings, mean: Any, std: Any, *augmentations: Any) -> Any:
    from torchvision import transforms as T

    size = (s.image_size, s.image_size)
    return T.Compose([*augmentations, T.Resize(size), T.ToTensor(), T.Normalize(mean, std)])


def _encoder(s: Settings) -> tuple[nn.Module, Any]:
    """The network of the encoder file as a plain timm model, and its header."""
    import mocokit

    encoder = mocokit.load(s.encoder, "cpu")
    model = timm.create_model(encoder.spec.backbone, num_classes=0)
    model.load_state_dict(encoder.backbone.state_dict())
    return model.to(s.device), encoder.spec


@torch.no_grad()
def embed(s: Settings) -> Result:
    """Images a second of a plain loop: image folder, loader workers, timm model, NumPy file."""
    import numpy as np

    model, spec = _encoder(s)
    model.eval()
    begun = time.perf_counter()
    dataset = torchvision.datasets.ImageFolder(str(s.train), _transform(s, spec.mean, spec.std))
    parts = [
        model(x.to(s.device)).cpu() for x, _ in DataLoader(dataset, batch_size=s.batch_size, num_workers=s.workers)
    ]
    features = torch.cat(parts).numpy()
    np.save(f"{s.scratch}/peer.npy", features)
    return {"value": len(features) / (time.perf_counter() - begun), "norm": float(np.square(features).mean())}


class Classifier(pl.LightningModule):
    """The notebook's linear classifier on a frozen backbone."""

    def __init__(self, backbone: nn.Module, features: int, classes: int, epochs: int) -> None:
        from lightly.models.utils import deactivate_requires_grad

        super().__init__()
        self.backbone = backbone
        deactivate_requires_grad(backbone)
        self.fc = nn.Linear(features, classes)
        self.criterion = nn.CrossEntropyLoss()
        self.right, self.asked, self.top1, self.epochs = 0.0, 0, 0.0, epochs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.backbone(x).flatten(start_dim=1))  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y, _ = batch
        loss: torch.Tensor = self.criterion(self.forward(x), y)
        self.log("train_loss_fc", loss)
        return loss

    def on_train_epoch_end(self) -> None:
        histogram_weights(self)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.right += (self.forward(x).argmax(1) == y).float().sum()
        self.asked += len(y)

    def on_validation_epoch_end(self) -> None:
        self.top1, self.right, self.asked = float(self.right / self.asked), 0.0, 0
        self.log("val_acc", self.top1, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.fc.parameters(), lr=30.0)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)]


def probe(s: Settings) -> Result:
    """Seconds of the notebook's classifier, all its epochs, on the same encoder as ours."""
    from lightly.data import LightlyDataset
    from torchvision import transforms as T

    backbone, spec = _encoder(s)
    augmentations = T.RandomCrop(s.image_size, padding=s.image_size // 8), T.RandomHorizontalFlip()
    begun = settled(s.device)
    train = LightlyDataset(input_dir=str(s.train), transform=_transform(s, spec.mean, spec.std, *augmentations))
    test = LightlyDataset(input_dir=str(s.test), transform=_transform(s, spec.mean, spec.std))
    loaders = (
        DataLoader(train, batch_size=s.batch_size, shuffle=True, drop_last=True, num_workers=s.workers),
        DataLoader(test, batch_size=s.batch_size, num_workers=s.workers),
    )
    classes = len({path.name for path in s.train.iterdir()})
    model = Classifier(backbone, backbone.num_features, classes, s.probe_epochs)
    _trainer(s, s.probe_epochs).fit(model, *loaders)
    return {"value": settled(s.device) - begun, "top1": model.top1}


@torch.no_grad()
def knn(s: Settings) -> Result:
    """Seconds of lightly's weighted kNN, in batches as its examples do."""
    from lightly.utils.benchmarking import knn_predict

    bank, labels, queries, answers = clusters(s)
    begun = settled(s.device)
    right = 0.0
    for start in range(0, len(queries), s.batch_size):
        rows = slice(start, start + s.batch_size)
        ranking = knn_predict(queries[rows], bank.T, labels, 10, knn_k=min(200, len(bank)), knn_t=0.1)
        right += float((ranking[:, 0] == answers[rows]).sum())
    return {"value": settled(s.device) - begun, "top1": right / len(queries)}
