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
from torch.nn.modules.batchnorm import _BatchNorm

from mocokit import distributed
from mocokit.model import fused


def _split_normalise(
    norm: nn.BatchNorm2d, x: Tensor, splits: int, shortcut: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Normalise consecutive groups of ``x`` [N, C, H, W] by their own statistics, add the ``shortcut``, then ReLU.

    Scale and shift are shared; the running statistics move towards the mean over groups. Any N works: group
    sizes differ by at most one, and there are never more groups than pairs of images.
    """
    splits = max(1, min(splits, len(x) // 2))
    if fused.can_fuse(norm, x, splits):
        return fused.normalise(norm, x, shortcut, splits, relu)
    if splits == 1:
        return _finish(nn.BatchNorm2d.forward(norm, x), shortcut, relu)
    normalise = _normalise_apart
    if len(x) % splits == 0 and torch.compiler.is_compiling():
        normalise = _normalise_view
    elif len(x) % splits == 0 and x.is_cuda:
        normalise = _normalise_as_channels
    y, stats = normalise(norm, x, splits)
    _update_statistics(norm, *stats.mean(dim=1))
    return _finish(y, shortcut, relu)


def _finish(y: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
    if shortcut is not None:
        y += shortcut
    return y.relu_() if relu else y


def _update_statistics(norm: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    """Move the running statistics towards those of a batch, the variance unbiased, as torch's batch norm does."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_(var.to(norm.running_var.dtype), momentum)


def _normalise_apart(norm: nn.BatchNorm2d, x: Tensor, splits: int) -> tuple[Tensor, Tensor]:
    """Groups of ``x`` normalised one by one: y, and each one's mean and unbiased variance [2, splits, C]."""
    N = x.shape[0]
    # Not tensor_split: its backward fills a whole gradient per group, split's is one concatenation.
    groups = x.split([N // splits + (i < N % splits) for i in range(splits)])
    dtype = torch.promote_types(x.dtype, torch.float32)
    stats = torch.zeros(2, splits, x.shape[1], dtype=dtype, device=x.device)
    normalised = [
        # momentum=1 leaves this group's own mean and variance in the buffers
        F.batch_norm(group, mean, var, norm.weight, norm.bias, True, 1.0, norm.eps)
        for group, mean, var in zip(groups, *(s.unbind() for s in stats), strict=True)
    ]
    return torch.cat(normalised), stats


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


def _normalise_as_channels(norm: nn.BatchNorm2d, x: Tensor, splits: int) -> tuple[Tensor, Tensor]:
    """The same with the groups as channels of one batch norm: two more passes, but one call for all of them."""
    C, *S = x.shape[1:]
    channels = x.movedim(1, -1).view(splits, -1, *S, C).movedim(0, -2).reshape(-1, *S, splits * C)
    stats = torch.zeros(2, splits, C, dtype=torch.float32, device=x.device)
    weight, bias = (norm.weight.repeat(splits), norm.bias.repeat(splits)) if norm.affine else (None, None)
    mean, var = stats.view(2, -1)
    y = F.batch_norm(channels.movedim(-1, 1), mean, var, weight, bias, True, 1.0, norm.eps)
    y = y.movedim(1, -1).view(-1, *S, splits, C).movedim(-2, 0).reshape(-1, *S, C)
    return y.movedim(-1, 1), stats


class SplitBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with ``splits`` groups in training; same parameters, buffers and state-dict keys."""

    splits = 1

    def forward(self, x: Tensor, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """With ``shortcut`` added and through a ReLU where they are asked for."""
        if self.training:
            return _split_normalise(self, x, self.splits, shortcut, relu)
        return _finish(super().forward(x), shortcut, relu)


class SplitBatchNormAct2d(BatchNormAct2d):
    """timm's fused batch norm and activation, split in the same way."""

    splits = 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        if type(self.act) is nn.ReLU and type(self.drop) is nn.Identity:
            return _split_normalise(self, x, self.splits, relu=True)
        return self.act(self.drop(_split_normalise(self, x, self.splits)))


SPLIT: dict[type, type] = {nn.BatchNorm2d: SplitBatchNorm2d, BatchNormAct2d: SplitBatchNormAct2d}


def split_batch_norm(module: nn.Module, splits: int) -> nn.Module:
    """Let each batch norm of ``module`` normalise ``splits`` groups of a training batch apart, in place.

    On a CPU channels-last images go through loops of their own, which have no second derivative.

    Raises:
        TypeError: a batch norm is neither torch's `BatchNorm2d` nor timm's `BatchNormAct2d`; nothing is changed.
        ValueError: fewer than one group.
    """
    if splits < 1:
        raise ValueError(f"{splits} groups, where at least 1 is expected")
    if splits == 1 and not any(isinstance(child, tuple(SPLIT.values())) for child in module.modules()):
        return module
    for norm in _replace_classes(module, SPLIT, "be split"):
        norm.splits = splits
    return module


def _replace_classes(module: nn.Module, forms: dict[type, type], what: str) -> list[Any]:
    """Give each batch norm of ``module`` the form for its kind; a kind without one can't ``what``: a `TypeError`."""
    norms = {name: child for name, child in module.named_modules() if isinstance(child, _BatchNorm)}
    forms = forms | {form: form for form in forms.values()}
    for name, norm in norms.items():
        if type(norm) not in forms:
            raise TypeError(f"{name}: {type(norm).__name__} can't {what}")
    for norm in norms.values():
        norm.__class__ = forms[type(norm)]
    return list(norms.values())


class FrozenBatchNorm(_BatchNorm):
    """Batch norm that normalises by its running statistics in training, too, and leaves them alone."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class FrozenBatchNormAct2d(FrozenBatchNorm):
    """timm's fused batch norm and activation with statistics that stay."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))  # type: ignore[operator]


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Keep the statistics of every batch norm of ``module``; a subclass of its own is a `TypeError`."""
    forms = dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), FrozenBatchNorm)
    _replace_classes(module, forms | {BatchNormAct2d: FrozenBatchNormAct2d}, "be frozen")
    return module


class _SyncNormalise(torch.autograd.Function):
    """Normalise x [b, C, ...] by the mean and variance of all processes' shares; one message each way.

    Gives y, and the mean and the biased variance [C], float32, of the whole batch. By hand, for derived from the
    differentiable collectives the same takes ten times as long: torch's kernels for one process do all the passes
    but two.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        unused = torch.zeros(2, x.shape[1], device=x.device)  # float32, which keeps the statistics so
        mean, var = torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)  # of this process, the variance biased
        # Means and variances are exchanged, not sums of squares, so that a large mean costs no digits.
        means, variances = distributed.all_gather(torch.stack([mean, var])[None]).unbind(1)
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)  # shares have equal sizes
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, var = ctx.saved_tensors
        dx, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0].to(x.dtype), x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )  # as if mean and variance did not depend on x; what they add is linear in x
        n = x.numel() // x.shape[1] * distributed.world_size()
        of_weight, of_bias = distributed.all_gather(torch.stack([d_weight, d_bias])[None].float()).sum(0) / n
        rstd = (var + ctx.eps).rsqrt()
        scale = rstd if weight is None else rstd * weight
        slope = -scale * rstd * of_weight
        shift = -scale * of_bias - slope * mean
        column = (1, -1, *[1] * (x.ndim - 2))
        dx += torch.addcmul(shift.view(column), x, slope.view(column))
        return (dx, None, None, None) if weight is None else (dx, d_weight, d_bias, None)


class CpuSyncBatchNorm(FrozenBatchNorm):
    """Batch norm with the statistics of all processes' images, for CPUs, which `torch.nn.SyncBatchNorm` lacks."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, var = _SyncNormalise.apply(x, self.weight, self.bias, self.eps)
        n = x.numel() // x.shape[1] * distributed.world_size()
        _update_statistics(self, mean, var * n / max(1, n - 1))
        return y


class CpuSyncBatchNormAct2d(CpuSyncBatchNorm):
    """timm's fused batch norm and activation, over all processes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))  # type: ignore[operator]


def sync_batch_norm(module: nn.Module, device: str) -> nn.Module:
    """Let every batch norm of ``module`` see the images of all processes; a subclass of its own is a `TypeError`."""
    if distributed.world_size() == 1:
        return module
    if device == "cuda":
        synced: nn.Module = convert_sync_batchnorm(module)
        return synced
    plain = dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), CpuSyncBatchNorm)
    _replace_classes(module, plain | {BatchNormAct2d: CpuSyncBatchNormAct2d}, "be shared by processes")
    return module


def running_statistics(module: nn.Module) -> list[Tensor]:
    """The running means and variances of all batch norms."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    return [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
