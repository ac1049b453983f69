"""Split batch norm: the statistics of several small devices on one, so that a key's batch gives nothing away.

MoCo v1 (arXiv 1911.05722, section 3.3) shuffles keys across GPUs because batch norm lets query and key share
statistics. On one device the same is had by normalising groups of the batch apart.
"""

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn


def _split_normalise(norm: nn.BatchNorm2d, x: Tensor, splits: int) -> Tensor:
    """Normalise consecutive groups of ``x`` [N, C, H, W] by their own statistics.

    Scale and shift are shared; the running statistics move towards the mean over groups. Any N works: group
    sizes differ by at most one, and there are never more groups than pairs of images.
    """
    N = x.shape[0]
    splits = max(1, min(splits, N // 2))
    # Not tensor_split: its backward fills a whole gradient per group, split's is one concatenation.
    groups = x.split([N // splits + (i < N % splits) for i in range(splits)])
    stats = torch.zeros(len(groups), 2, x.shape[1], dtype=torch.float32, device=x.device)
    y = torch.cat(
        [
            # momentum=1 leaves this group's own mean and variance in the buffers
            F.batch_norm(group, mean, var, norm.weight, norm.bias, True, 1.0, norm.eps)
            for group, (mean, var) in zip(groups, stats, strict=True)
        ]
    )
    if norm.running_mean is not None and norm.running_var is not None:
        mean, var = stats.mean(dim=0).to(norm.running_mean.dtype)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(var, momentum)
    return y


class SplitBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with ``splits`` groups in training; same parameters, buffers and state-dict keys."""

    splits = 1

    def forward(self, x: Tensor) -> Tensor:
        return _split_normalise(self, x, self.splits) if self.training else super().forward(x)


class SplitBatchNormAct2d(BatchNormAct2d):
    """timm's fused batch norm and activation, split in the same way."""

    splits = 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return self.act(self.drop(_split_normalise(self, x, self.splits)))


def split_batch_norm(module: nn.Module, splits: int) -> nn.Module:
    """Turn every batch norm of ``module`` into its split form, in place; other norms need none.

    Batch norms of a kind that can't be split (a subclass with behaviour of its own) raise ``TypeError``.
    """
    if splits == 1:
        return module
    for name, child in module.named_modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SplitBatchNorm2d
        elif type(child) is BatchNormAct2d:
            child.__class__ = SplitBatchNormAct2d
        elif isinstance(child, nn.modules.batchnorm._BatchNorm):
            raise TypeError(f"{name}: {type(child).__name__} can't be split")
        else:
            continue
        child.splits = splits
    return module
