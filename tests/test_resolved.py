"""config.yaml: written, read, compared, and refused where it is damaged."""

from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mocokit.auto.defaults import defaults
from mocokit.config import FIELDS
from mocokit.errors import UserError
from mocokit.options import load_config, merge
from mocokit.resolved import Extends, differences, dump, parse
from tests.auto.test_defaults import any_facts, facts

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.dates() | st.binary(max_size=9)
)
keys = st.text(max_size=9) | st.integers()
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


@given(any_facts)
def test_config_yaml_round_trips(f):
    resolved = defaults({"data": "x", "seed": 3}, f)
    assert parse(dump(resolved, {"torch": "1"}), "test") == resolved
    assert yaml.safe_load(dump(resolved, {"torch": "1"}))["versions"] == {"torch": "1"}


@pytest.mark.parametrize("damaged", [3, [], {"run": "x"}, {"run": 3, "step": 4}, {"run": "x", "step": 0}])
def test_what_a_run_extends_round_trips_or_is_one_clear_line(damaged):
    resolved = replace(defaults({"data": "x"}, facts()), extends=Extends("runs/x", 40))
    text = dump(resolved, {})
    assert parse(text, "test") == resolved
    assert parse(text, "test").derive("for cpu", workers=7).restart == resolved.restart == 40
    with pytest.raises(UserError, match=r"^test: .*extends holds a run and a step\); start anew with --overwrite$"):
        parse(yaml.safe_dump(yaml.safe_load(text) | {"extends": damaged}), "test")


def test_differences_name_the_option_and_both_values():
    saved = defaults({"data": "x", "lr": 0.1, "limit": 100}, facts())
    same = {"data": "x", "lr": 0.1, "limit": 100}
    assert differences(same, {}, saved) == []
    assert differences(same | {"workers": 7, "out": "elsewhere", "data": "./x", "device": "cuda"}, {}, saved) == []
    assert differences({"data": "x", "lr": 0.2}, {}, saved) == ["--lr 0.2 (was 0.1)", "no --limit (was 100)"]
    assert differences({"data": "x", "lr": 0.2}, {}, saved, but=("lr", "steps")) == ["no --limit (was 100)"]


def test_precision_may_differ_on_another_device_unless_the_user_had_chosen_it():
    saved = defaults({"data": "x", "device": "cpu"}, facts())
    assert differences({"data": "x", "device": "cpu", "precision": "bf16"}, {}, saved) == [
        "--precision bf16 (was fp32)"
    ]
    assert differences({"data": "x", "device": "cuda", "precision": "bf16"}, {}, saved) == []
    saved = defaults({"data": "x", "device": "cpu", "precision": "fp32"}, facts())
    assert differences({"data": "x", "device": "cuda", "precision": "bf16"}, {}, saved) == [
        "--precision bf16 (was fp32)"
    ]


def test_of_a_recipe_its_values_are_compared_not_its_path():
    values = {"temperature": 0.3, "epochs": 50}
    saved = defaults({"data": "x", "recipe": "mine.yaml", "lr": 0.1}, facts(), values)
    given = {"data": "x", "recipe": "/there/mine.yaml", "lr": 0.1}
    assert differences(given, values, saved) == []
    assert differences(given, values | {"temperature": 0.4}, saved) == ["--temperature 0.4 by the recipe (was 0.3)"]
    assert differences({"data": "x", "lr": 0.1}, {}, saved)[0] == "no --recipe (was mine.yaml)"


DEEP = "[" * 5000
LAUGHS = "a: &a [x, x]\n" + "\n".join(f"{b}: &{b} [*{a}, *{a}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
DAMAGED = [
    *("", "a: [", "just words", "- 1", "seed: !!int x", "seed: 2026-99-99", "seed: !!timestamp x", "lr: !!float x"),
    *(
        f"seed: {'9' * 5000}",
        f"a: {DEEP}",
        "? [1, 2]\n: 3",
        "3: 4",
        "seed: !!binary é",
        "seed: !!python/name:os.system",
    ),
    *("seed: 2026-01-01", "lr: [1]", "seed: {a: 1}", "seed: 0x" + "f" * 4000, "lr: 0x" + "f" * 4000, "data: {a: b}"),
    *("reasons: []", "reasons: {a: [1]}", "reasons: 2026-01-01", LAUGHS, "\0", "a: *b", "<<: 3", "seed: .nan"),
]


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_configurations_are_one_clear_line(text, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    for read, origin in ((lambda: parse(text, "test"), "test"), (lambda: load_config(str(path), FIELDS), "--config")):
        if origin == "--config" and text.startswith("reasons"):
            continue  # passed over there
        with pytest.raises(UserError, match=f"^{origin}[^\n]*$") as caught:
            read()
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(("text", "what"), [("", "empty; expected lines"), ("a: [", "not valid YAML")])
def test_a_configuration_that_cannot_be_read_has_a_way_out(text, what):
    with pytest.raises(UserError, match=f"^run/config.yaml: {what}.*; restore it, or start anew with --overwrite$"):
        parse(text, "run/config.yaml")


@given(st.dictionaries(st.sampled_from([*FIELDS, "reasons", "versions", "extends", "more"]), anything), st.booleans())
@settings(max_examples=100, derandomize=True, deadline=None)
def test_any_values_are_one_clear_line_or_a_configuration(values, whole):
    """Every option may hold anything that YAML can say."""
    complete = yaml.safe_load(dump(defaults({"data": "x"}, facts()), {})) if whole else {}
    message = ""
    try:
        parse(yaml.safe_dump(complete | values), "test")
    except UserError as error:
        message = str(error)
    assert "\n" not in message


def test_a_value_that_is_missing_is_told():
    values = yaml.safe_load(dump(defaults({"data": "x"}, facts()), {}))
    for name in ("lr", "view_size", "batch_size"):
        with pytest.raises(UserError, match=f"it does not say {name}"):
            parse(yaml.safe_dump(values | {name: None}), "test")


def test_a_configuration_of_another_version_is_refused():
    text = dump(defaults({"data": "x"}, facts()), {})
    without = "\n".join(line for line in text.splitlines() if not line.startswith("temperature:"))
    with pytest.raises(UserError, match=r"config.yaml: .*another version: it does not say temperature"):
        parse(without, "config.yaml")


def test_a_run_of_before_an_option_has_its_default_and_goes_on():
    """Any option that has one; nobody is said to have set it."""
    resolved = defaults({"data": "x", "labels": "l.csv"}, facts())
    lines = yaml.safe_load(dump(resolved, {}))
    for name in (name for name, option in FIELDS.items() if option.has_default and name != "labels"):
        older = {n: v for n, v in lines.items() if n != name}
        older["reasons"] = {n: v for n, v in lines["reasons"].items() if n != name}
        read = parse(yaml.safe_dump(older), "config.yaml")
        assert getattr(read.config, name) == FIELDS[name].default
        assert read.given == resolved.given
        assert differences({"data": "x", "labels": "l.csv"}, {}, read) == []


def test_a_runs_config_yaml_can_be_given_as_config(tmp_path):
    resolved = defaults({"data": "x", "epochs": 5}, facts())
    path = tmp_path / "config.yaml"
    path.write_text(dump(resolved, {}))
    again = defaults(merge({}, load_config(str(path), FIELDS)), facts())
    assert again.config == resolved.config
    assert differences(merge({}, load_config(str(path), FIELDS)), {}, resolved) == []  # so it goes on with its run
    assert differences({"data": "x", "steps": resolved.config.steps + 1}, {}, resolved)
    shorter = defaults(merge({"epochs": 2}, load_config(str(path), FIELDS)), facts())
    assert (shorter.config.epochs, shorter.config.steps) == (2, 2 * (5000 // again.config.batch_size))
