"""What is derived fits the data, follows the papers and never changes what the user says."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mocokit.auto.defaults import Facts, defaults, weights_image_size
from mocokit.config import FIELDS
from mocokit.errors import UserError
from mocokit.options import validate
from mocokit.recipes import load_recipe, recipe_names


def facts(**changes):
    base = Facts(name="birds", images=5000, image_size=32, longest=32, channels=3, device="cpu", bf16=False, cpus=2)
    return dataclasses.replace(base, **changes)


any_facts = st.builds(
    facts,
    images=st.integers(16, 2_000_000),
    image_size=st.sampled_from([8, 32, 64, 96, 224]),
    channels=st.sampled_from([1, 3, 5]),
    device=st.sampled_from(["cpu", "cuda"]),
    bf16=st.booleans(),
)


@given(any_facts)
def test_auto_fits_any_data(f):
    config = defaults({"data": "x"}, f).config
    assert config.batch_size <= f.images
    assert config.queue_size <= f.images - config.batch_size  # no image meets its own key within an epoch
    assert config.queue_size & (config.queue_size - 1) == 0
    assert config.batch_size // config.bn_splits >= 8
    assert config.steps == config.epochs * (f.images // config.batch_size)
    assert f.channels == 3 or (config.gray_p == 0)
    validate({n: v for n, v in dataclasses.asdict(config).items() if v is not None}, FIELDS)  # all within their ranges


@given(any_facts, st.sampled_from(recipe_names()))
def test_every_value_is_given_or_has_a_reason(f, recipe):
    if f.images < 8192:
        f = dataclasses.replace(f, images=8192)
    resolved = defaults({"data": "x", "recipe": recipe, "lr": 0.123}, f, load_recipe(recipe))
    assert set(resolved.given) == {"data", "recipe", "lr"}
    assert resolved.config.lr == 0.123
    assert set(resolved.given) | set(resolved.reasons) == set(FIELDS)


def test_learning_rate_is_linear_in_the_batch():
    lrs = [defaults({"data": "x", "batch_size": b}, facts()).config.lr for b in (64, 128, 256)]
    assert lrs[1] == pytest.approx(2 * lrs[0])
    assert lrs[2] == pytest.approx(4 * lrs[0])


def test_order_of_sources():
    recipe = load_recipe("moco-v2-cifar10")
    resolved = defaults(
        {"data": "x", "recipe": "moco-v2-cifar10", "temperature": 0.3},
        facts(images=50_000),
        load_recipe("moco-v2-cifar10"),
    )
    assert resolved.config.temperature == 0.3
    assert resolved.config.queue_size == recipe["queue_size"] == 4096
    assert resolved.reasons["queue_size"] == "recipe moco-v2-cifar10"
    assert resolved.reasons["sgd_momentum"] == "default" or "sgd_momentum" in recipe


@pytest.mark.parametrize("length", [{"steps": 7}, {"epochs": 3}, {"time_budget": "1m"}])
def test_a_length_of_the_users_beats_the_recipes(length):
    given = {"data": "x", "recipe": "moco-v2-cifar10"} | length
    config = defaults(given, facts(images=50_000), load_recipe(given["recipe"])).config
    if "steps" in length:
        assert (config.steps, config.epochs) == (7, 1)
    elif "epochs" in length:
        assert (config.epochs, config.steps) == (3, 3 * (50_000 // 512))
    else:
        assert config.epochs != load_recipe("moco-v2-cifar10")["epochs"]


def test_recipes_say_where_they_come_from():
    from importlib import resources

    assert {"moco-v1", "moco-v2", "moco-v2-cifar10", "moco-v3-resnet50", "moco-v3-vit-s"} <= set(recipe_names())
    for name in recipe_names():
        text = (resources.files("mocokit.recipes") / f"{name}.yaml").read_text()
        header = [line for line in text.splitlines() if line.startswith("#")]
        assert all(any(word in line for line in header) for word in ("Paper:", "Command:", "Cost:", "Result:"))
        load_recipe(name)


def test_papers_start_as_their_code_does():
    """Residual branches of torchvision's ResNets do not start at zero, which v3 asks for."""
    without = {name for name in recipe_names() if load_recipe(name).get("zero_init_last") is False}
    assert without == {"moco-v1", "moco-v2", "moco-v2-cifar10", "moco-v2plus-cifar10", "moco-v3-cifar10"}
    assert load_recipe("moco-v3-resnet50")["zero_init_last"] is True
    assert defaults({"data": "x"}, facts()).config.zero_init_last is True


def test_papers_settings():
    v1, v2 = load_recipe("moco-v1"), load_recipe("moco-v2")
    for recipe in (v1, v2):
        assert recipe["queue_size"] == 65536
        assert recipe["momentum"] == 0.999
        assert (recipe["batch_size"], recipe["lr"], recipe["weight_decay"]) == (256, 0.03, 1e-4)
        assert (recipe["epochs"], recipe["backbone"], recipe["head_dim"]) == (200, "resnet50", 128)
    assert (v1["head"], v1["temperature"], v1["schedule"], v1["views"]) == ("linear", 0.07, "step", "v1")
    assert (v2["head"], v2["temperature"], v2["schedule"], v2["views"]) == ("mlp", 0.2, "cosine", "v2")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("moco-v3-resnet50", {"optimizer": "lars", "lr": 0.3 * 16, "temperature": 1.0, "crop_min": 0.2}),
        ("moco-v3-vit-s", {"optimizer": "adamw", "lr": 1.5e-4 * 16, "temperature": 0.2, "crop_min": 0.08}),
    ],
)
def test_papers_settings_of_v3(name, expected):
    recipe = load_recipe(name)
    shared = {"queue_size": 0, "symmetric": True, "momentum": 0.99, "momentum_end": 1.0, "batch_size": 4096}
    shared |= {"epochs": 300, "head_hidden": 4096, "head_dim": 256, "bn_splits": 1, "schedule": "cosine"}
    shared |= {"views": "v3", "blur_p": 1.0, "blur_p2": 0.1, "solarize_p2": 0.2}
    assert {key: recipe[key] for key in shared | expected} == pytest.approx(shared | expected)


def test_momentum_and_blur_are_the_same_throughout_unless_said():
    config = defaults({"data": "x", "momentum": 0.97, "blur_p": 0.3}, facts()).config
    assert (config.momentum_end, config.blur_p2, config.solarize_p2) == (0.97, 0.3, 0.0)


def test_too_few_images_and_too_large_a_batch():
    with pytest.raises(UserError, match="2 usable training images"):
        defaults({"data": "x"}, facts(images=2))
    with pytest.raises(UserError, match="--batch-size 512 is larger than the 300"):
        defaults({"data": "x", "batch_size": 512}, facts(images=300))


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_a_batch_is_shared_evenly_and_its_rate_grows_with_it(processes):
    gpus = facts(images=50_000, device="cuda", bf16=True, processes=processes)
    config = defaults({"data": "x"}, gpus).config
    one = defaults({"data": "x"}, dataclasses.replace(gpus, processes=1)).config
    assert config.batch_size == processes * one.batch_size
    assert config.lr == pytest.approx(processes * one.lr)
    cpu = defaults({"data": "x"}, dataclasses.replace(gpus, device="cpu")).config
    assert cpu.batch_size % processes == 0
    assert 128 - processes < cpu.batch_size <= 128


@pytest.mark.parametrize(
    ("given", "known", "optimizer", "splits"),
    [
        ({}, {"bf16": True}, "muon", 1),
        ({}, {"bf16": False}, "sgd", 1),
        ({"lr": 0.1}, {"bf16": True}, "sgd", 1),  # which is meant for the papers' optimizer
        ({}, {"bf16": True, "weights": "resnet18_narrow"}, "sgd", 4),
        ({}, {"bf16": True, "processes": 2}, "muon", 8),
        ({}, {"bf16": True, "device": "cuda"}, "sgd", 8),
    ],
)
def test_muon_and_plain_batch_norm_are_for_short_runs_on_a_cpu(given, known, optimizer, splits):
    config = defaults({"data": "x", **given}, facts(images=50_000, **known)).config
    assert (config.optimizer, config.bn_splits) == (optimizer, splits)
    if optimizer == "muon":
        assert (config.lr, config.weight_decay) == (pytest.approx(0.016 * math.sqrt(config.batch_size / 128)), 0.02)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UserError, match=r"--batch-size 64 can't be shared evenly by 3 processes; .* 63"):
        defaults({"data": "x", "batch_size": 64}, facts(processes=3))


def sizes(f=None, **given):
    config = defaults({"data": "x", **given}, f or facts(), load_recipe(given.get("recipe", "auto"))).config
    return config.image_size, config.view_size, config.view_size_end


def test_views_are_as_large_as_the_encoders_images_unless_said():
    gpu = facts(device="cuda")
    assert sizes(recipe="moco-v2-cifar10", batch_size=64) == (32, 32, 32)
    assert sizes(gpu, image_size=24) == (24, 24, 24)
    assert sizes(gpu, image_size=24, view_size=12) == (24, 12, 24)
    assert sizes(gpu, image_size=24, view_size_end=16) == (24, 16, 16)
    assert sizes(gpu, image_size=24, view_size=28) == (24, 28, 28)
    with pytest.raises(UserError, match=r"--view-size 28 .* 24 pixels"):
        sizes(gpu, view_size=28, view_size_end=24)


def test_on_a_cpu_views_grow_where_they_can():
    assert sizes(facts(image_size=24)) == (24, 12, 20)
    assert sizes(facts(image_size=24), view_size_end=12) == (24, 12, 12)
    assert sizes(facts(image_size=24), view_size=24) == (24, 24, 24)
    assert sizes(facts(image_size=16, longest=8)) == (16, 16, 16)  # digits
    assert sizes(facts(), image_size=8) == (8, 8, 8)


@given(any_facts)
def test_views_never_shrink(f):
    size, start, end = sizes(f)
    assert min(size, 8) <= start <= end <= max(size, 8)


def test_a_run_that_goes_on_from_weights_is_careful():
    """Their backbone, large views at once, a rate that follows the batch, and warm-up for the new head."""
    recipe = load_recipe("continue")
    options = {"data": "d", "recipe": "continue", "steps": 80}
    found = defaults(options, facts(weights="tf_efficientnet_lite0", image_size=96, longest=192), recipe).config
    assert (found.backbone, found.view_size, found.view_size_end) == ("tf_efficientnet_lite0", 80, 80)
    assert (found.bn_splits, found.warmup_steps, found.lr) == (0, 10, pytest.approx(0.01 / 64 * found.batch_size))
    larger = defaults({**options, "batch_size": 256}, facts(weights="resnet50", image_size=96), recipe).config
    assert larger.lr == pytest.approx(0.01 * 4)
    assert weights_image_size(224, "cpu") == 96
    assert weights_image_size(32, "cpu") == 32
    assert weights_image_size(224, "cuda") == 224


def test_short_schedules_have_a_linear_head_and_plain_batch_norm():
    def chosen(**known):
        config = defaults({"data": "x"}, facts(**known)).config
        return config.head, config.bn_splits

    assert chosen() == ("linear", 1)
    assert chosen(processes=2)[0] == "linear"  # the network is the same
    hidden = defaults({"data": "x", "head_hidden": 64}, facts()).config
    assert hidden.head == "mlp"  # a linear one has no hidden layer
    assert chosen(device="cuda")[0] == chosen(weights="resnet50")[0] == "mlp"
    assert chosen(device="cuda")[1] == 8


def test_who_wants_no_figures_gets_no_checks_and_no_report_unless_they_are_asked_for():
    without = defaults({"data": "x", "evaluate": False}, facts()).config
    assert (without.monitor_every, without.report) == (0, False)
    asked = {"data": "x", "evaluate": False, "monitor_every": 3, "report": True}
    assert (defaults(asked, facts()).config.monitor_every, defaults(asked, facts()).config.report) == (3, True)
    assert defaults({"data": "x"}, facts()).config.monitor_every > 0
