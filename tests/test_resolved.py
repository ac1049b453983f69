"""config.yaml: written, read, compared, and refused where it is damaged."""

import pytest
import yaml
from hypothesis import given

from mocokit.auto.defaults import defaults
from mocokit.config import FIELDS
from mocokit.errors import UserError
from mocokit.options import load_config, merge
from mocokit.resolved import differences, dump, parse
from tests.auto.test_defaults import any_facts, facts


@given(any_facts)
def test_config_yaml_round_trips(f):
    resolved = defaults({"data": "x", "seed": 3}, f)
    assert parse(dump(resolved, {"torch": "1"}), "test") == resolved
    assert yaml.safe_load(dump(resolved, {"torch": "1"}))["versions"] == {"torch": "1"}


def test_differences_name_the_option_and_both_values():
    saved = defaults({"data": "x", "lr": 0.1, "limit": 100}, facts())
    assert differences({"data": "x", "lr": 0.1, "limit": 100}, saved) == []
    assert differences({"data": "x", "lr": 0.1, "limit": 100, "workers": 7, "out": "elsewhere"}, saved) == []
    assert differences({"data": "x", "lr": 0.2}, saved) == ["--lr 0.2 (was 0.1)", "no --limit (was 100)"]


@pytest.mark.parametrize("text", ["", "a: [", "just words", "- 1"])
def test_damaged_configurations_are_one_clear_line(text, tmp_path):
    with pytest.raises(UserError, match="test"):
        parse(text, "test")
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="--config"):
        load_config(str(path), FIELDS)


def test_a_configuration_of_another_version_is_refused():
    text = dump(defaults({"data": "x"}, facts()), {})
    without = "\n".join(line for line in text.splitlines() if not line.startswith("temperature:"))
    with pytest.raises(UserError, match=r"config.yaml: .*another version: it does not say temperature"):
        parse(without, "config.yaml")


def test_a_runs_config_yaml_can_be_given_as_config(tmp_path):
    resolved = defaults({"data": "x", "epochs": 5}, facts())
    path = tmp_path / "config.yaml"
    path.write_text(dump(resolved, {}))
    again = defaults(merge({}, load_config(str(path), FIELDS)), facts())
    assert again.config == resolved.config
    shorter = defaults(merge({"epochs": 2}, load_config(str(path), FIELDS)), facts())
    assert (shorter.config.epochs, shorter.config.steps) == (2, 2 * (5000 // again.config.batch_size))
