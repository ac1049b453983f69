"""Batch norm over parts of a batch, or over the whole of it where processes share it.

Split batch norm has the statistics of several small devices on one, so that a key's batch gives nothing away: MoCo
v1 (arXiv 1911.05722, section 3.3) shuffles keys across GPUs because batch norm lets query and key share statistics.
On one device the same is had by normalising groups of the batch apart.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from mocokit import distributed


def _split_normalise(norm: nn.BatchNorm2d, x: Tensor, splits: int) -> Tensor:
    """Normalise consecutive groups of ``x`` [N, C, H, W] by their own statistics.

    Scale and shift are shared; the running statistics move towards the mean over groups. Any N works: group
    sizes differ by at most one, and there are never more groups than pairs of images.
    """
    N = x.shape[0]
    splits = max(1, min(splits, N // 2))
    if torch.compiler.is_compiling() and N % splits == 0:
        y, stats = _normalise_view(norm, x, splits)
    else:
        y, stats = _normalise_apart(norm, x, splits)
    if norm.running_mean is not None and norm.running_var is not None:
        mean, var = stats.mean(dim=1).to(norm.running_mean.dtype)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(var, momentum)
    return y


def _normalise_apart(norm: nn.BatchNorm2d, x: Tensor, splits: int) -> tuple[Tensor, Tensor]:
    """Groups of ``x`` normalised one by one: y, and each one's mean and unbiased variance [2, splits, C]."""
    N = x.shape[0]
    # Not tensor_split: its backward fills a whole gradient per group, split's is one concatenation.
    groups = x.split([N // splits + (i < N % splits) for i in range(splits)])
    stats = torch.zeros(2, splits, x.shape[1], dtype=torch.float32, device=x.device)
    y = torch.cat(
        [
            # momentum=1 leaves this group's own mean and variance in the buffers
            F.batch_norm(group, mean, var, norm.weight, norm.bias, True, 1.0, norm.eps)
            for group, mean, var in zip(groups, *(s.unbind() for s in stats), strict=True)
        ]
    )
    return y, stats


def _normalise_view(norm: nn.BatchNorm2d, x: Tensor, splits: int) -> tuple[Tensor, Tensor]:
    """The same for groups of equal size, in arithmetic that a compiler makes few passes of."""
    groups = x.view(splits, -1, *x.shape[1:]).float()
    var, mean = torch.var_mean(groups, dim=(1, 3, 4), correction=0, keepdim=True)
    y = (groups - mean) * (var + norm.eps).rsqrt()
    if norm.affine:
        y = y * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    n = groups[0].numel() // groups.shape[2]
    stats = torch.stack([mean, var * (n / max(1, n - 1))]).detach()
    return y.to(x.dtype).view_as(x), stats.view(2, splits, -1)


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


class _SyncNormalise(torch.autograd.Function):
    """Normalise x [b, C, ...] by mean and variance of all processes' shares; one message each way.

    Gives y, and the mean and the biased variance [C], float32, of the whole batch.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        over, column = _other_axes(x), (1, -1, *[1] * (x.ndim - 2))
        mean = x.float().mean(over)
        var = (x.float() - mean.view(column)).square_().mean(over)  # faster than torch.var_mean
        # Shares have equal sizes. Variances, not squares, so that a large mean costs no digits.
        means, variances = distributed.all_gather(torch.stack([mean, var])[None]).unbind(1)
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        ctx.save_for_backward(x, mean, (var + eps).rsqrt(), weight)
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, mean, rstd, weight = ctx.saved_tensors
        over, column, dy = _other_axes(x), (1, -1, *[1] * (x.ndim - 2)), gradients[0].float()
        centred = x.float() - mean.view(column)
        own = torch.stack([dy.sum(over), (dy * centred).sum(over) * rstd])  # gradients of bias and weight
        whole = distributed.all_gather(own[None]).sum(0) / (
            x.numel() // x.shape[1] * distributed.world_size()
        )
        slope = rstd if weight is None else rstd * weight
        dx = (dy - whole[0].view(column)).addcmul_(centred, (-whole[1] * rstd).view(column))
        dx = dx.mul_(slope.view(column)).to(x.dtype)
        return (dx, None, None, None) if weight is None else (dx, own[1], own[0], None)


def _other_axes(x: Tensor) -> list[int]:
    """All axes but the channels'."""
    return [0, *range(2, x.ndim)]


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the statistics of all processes' images, for CPUs, which `torch.nn.SyncBatchNorm` lacks."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        y, mean, var = _SyncNormalise.apply(x, self.weight, self.bias, self.eps)
        self._remember(mean, var, x.numel() // x.shape[1] * distributed.world_size())
        return y

    def _remember(self, mean: Tensor, var: Tensor, n: int) -> None:
        """Move the running statistics, the variance unbiased, as torch's batch norm does."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var * n / max(1, n - 1), momentum)


class CpuSyncBatchNormAct2d(CpuSyncBatchNorm):
    """timm's fused batch norm and activation, over all processes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))  # type: ignore[operator]


def sync_batch_norm(module: nn.Module, device: str) -> nn.Module:
    """Let every batch norm of ``module`` see the images of all processes; nothing changes where there is one.

    Batch norms of a kind that can't be (a subclass with behaviour of its own) raise ``TypeError``.
    """
    if distributed.world_size() == 1:
        return module
    if device == "cuda":
        synced: nn.Module = convert_sync_batchnorm(module)
        return synced
    for name, child in module.named_modules():
        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
            child.__class__ = CpuSyncBatchNorm
        elif type(child) is BatchNormAct2d:
            child.__class__ = CpuSyncBatchNormAct2d  # type: ignore[assignment]
        elif isinstance(child, nn.modules.batchnorm._BatchNorm):
            raise TypeError(f"{name}: {type(child).__name__} can't be shared by processes")
    return module


def running_statistics(module: nn.Module) -> list[Tensor]:
    """The running means and variances of all batch norms."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
