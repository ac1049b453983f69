"""A training step on a GPU, played through without one: tensors there have a device and a shape, but no numbers.

So what needs a number of the GPU's, for which a host would wait, fails, and so does what mixes devices.
"""

import contextlib

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from mocokit.data import recorded_views
from mocokit.data.loader import Loader, create_loader
from mocokit.data.store import ImageSet, open_store
from mocokit.training.pretraining import Pretraining
from tests.tiny_runs import tiny_data
from tests.training.test_pretraining import V2, V3_RESNET, V3_VIT, task

GPU = torch.device("cuda", 0)


class HostWaited(Exception):
    """Something asked for what only the device knows."""


class PretendedGpu(FakeTensorMode):
    """Tensors on the CPU are real ones, those on the GPU are `FakeTensor`, and none comes back."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._pin_memory.default:
            return args[0]
        leaves = tree_leaves((args, kwargs or {}))
        there = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        if not there and not any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves):
            return func(*args, **(kwargs or {}))
        if there and any(isinstance(leaf, torch.device) and leaf.type == "cpu" for leaf in leaves):
            raise HostWaited(str(func))
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.fixture
def gpu(monkeypatch):
    def plainly(render, shape, device):
        return lambda images, packed: render(images, packed.to(device))

    monkeypatch.setattr(recorded_views, "recording", plainly)  # a graph needs the real device
    with PretendedGpu(allow_non_fake_inputs=True) as mode:
        yield mode


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> ImageSet:
    data = tiny_data(tmp_path_factory.mktemp("data"))
    return open_store(str(data), image_size=16, workers=0).splits["train"]


def moved(pretraining: Pretraining) -> Pretraining:
    """The module on the pretended GPU."""
    for part in pretraining.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None:
                part._parameters[name] = torch.nn.Parameter(tensor.detach().to(GPU), tensor.requires_grad)
        for name, tensor in part._buffers.items():
            if tensor is not None:
                part._buffers[name] = tensor.to(GPU)
    return pretraining


def loader(images: ImageSet, pretraining: Pretraining) -> Loader:
    """Of a set that lives on the device whole."""
    size = pretraining.config.batch_size
    made = create_loader(images, batch_size=size, seed=0, device=torch.device("cpu"), workers=0)
    made.device = GPU
    made.resident = torch.from_numpy(images.batch(np.arange(len(images)))).to(GPU)
    return made


@contextlib.contextmanager
def autocast(precision):
    """What `torch.autocast("cuda", torch.bfloat16)` sets, which by itself wants a GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", precision == "bf16")
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("views", ["v1", "v2", "v3"])
@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("resnet18_narrow", V2),
        ("resnet18_narrow", V2 | {"symmetric": True, "bn_splits": 1}),
        ("resnet18_narrow", V3_RESNET),
        ("vit_narrow", V3_VIT),
    ],
)
def test_a_step_never_waits_for_the_gpu(gpu, images, backbone, options, views, precision):
    probabilities = {"blur_p": 0.5, "blur_p2": 0.5, "solarize_p2": 0.5, "gray_p": 0.5}
    pretraining = moved(task(backbone, 16, **options | probabilities | {"views": views}))
    optimizer, _ = pretraining.configure_optimizer()
    seen = set()
    pretraining.moco.encoder_k.register_forward_hook(lambda module, x, y: seen.add(y.dtype))
    for batch in loader(images, pretraining).batches(0, 2):
        x = pretraining.views(batch)
        with autocast(precision):
            loss = pretraining(x)
        assert (precision == "bf16") == (seen == {torch.bfloat16})
        assert loss.device == GPU
        for parameter in pretraining.parameters():  # backward needs the real device
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        pretraining.before_optimizer_step()
        if not optimizer.defaults.get("fused"):  # torch's fused kernels can't be played
            optimizer.step()


def test_what_waits_is_noticed(gpu):
    x = torch.zeros(3).to(GPU)
    for ask in (float, lambda x: x.tolist(), lambda x: x.cpu(), lambda x: bool((x > 0).any())):
        with pytest.raises((HostWaited, DataDependentOutputException)):
            ask(x.sum())
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.zeros(3)
