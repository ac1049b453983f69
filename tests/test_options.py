"""What an option is: the same in flags, YAML and Python, and one clear message for all mistakes."""

import inspect
import shlex
from typing import Any, get_type_hints

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import mocokit
from mocokit.cli import _options, parse
from mocokit.config import FIELDS, VERBS, KnnConfig
from mocokit.errors import UserError
from mocokit.options import (
    LENGTHS,
    Option,
    config_of,
    documented,
    fields_of,
    flag,
    load_config,
    merge,
    parse_duration,
    validate,
)

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=9)


def values_of(option: Option) -> st.SearchStrategy[Any]:
    """Values that the option allows."""
    low = 0 if option.low is None else option.low
    high = 10 * low + 100 if option.high is None else option.high
    if option.name == "time_budget":
        return st.sampled_from(["90s", "1.5h", "45"])
    if option.choices:
        return st.sampled_from(option.choices)
    return {
        bool: st.booleans(),
        int: st.integers(int(low), int(high)),
        float: st.floats(low, high),
        tuple: st.lists(WORDS.filter(lambda word: not word.startswith("-")), min_size=1, max_size=3),
        str: WORDS.filter(lambda word: not word.startswith("-")),
    }[option.kind]


@st.composite
def settings_of_a_verb(draw) -> tuple[str, dict[str, Any]]:
    """A verb, all its required options and some of the others."""
    verb = draw(st.sampled_from(list(VERBS)))
    fields = fields_of(VERBS[verb])
    names = [name for name, option in fields.items() if option.required or draw(st.booleans())]
    lengths = [name for name in names if name in LENGTHS]
    chosen = [name for name in names if name not in lengths[1:]]
    return verb, {name: draw(values_of(fields[name])) for name in chosen}


def command_line(verb: str, values: dict[str, Any], flags_first: bool) -> list[str]:
    """The words that a user would type."""
    fields, words, flags = fields_of(VERBS[verb]), [], []
    for name, value in values.items():
        if fields[name].positional:
            words += value if isinstance(value, list) else [value]
        elif isinstance(value, bool):
            flags.append(flag(name) if value else "--no-" + flag(name)[2:])
        else:
            flags.append(f"{flag(name)}={value}")  # argparse takes a separate -1e-5 for a flag
    return [verb, *flags, *words] if flags_first else [verb, *words, *flags]


@given(settings_of_a_verb(), st.booleans())
def test_flags_and_a_file_that_say_the_same_give_the_same_options(tmp_path_factory, setting, flags_first):
    verb, values = setting
    fields = fields_of(VERBS[verb])
    path = tmp_path_factory.mktemp("yaml") / "c.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    by_flags = _options(parse(command_line(verb, values, flags_first)), fields)
    by_file = _options(parse([verb, "--config", str(path)]), fields)
    assert by_flags == by_file == validate(values, fields)
    VERBS[verb](**dict.fromkeys(fields) | by_flags)


@pytest.mark.parametrize("line", ["f.npy 0 7 --k 3", "f.npy --k 3 0 7", "--k 3 f.npy 0 7", "f.npy 0 --k=3 7"])
def test_queries_stand_before_or_after_flags(line):
    options = _options(parse(["search", *shlex.split(line)]), fields_of(VERBS["search"]))
    assert options == {"features": "f.npy", "queries": ("0", "7"), "k": 3}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_in_signature_and_documentation(verb):
    function, fields = getattr(mocokit, verb), fields_of(VERBS[verb])
    parameters = inspect.signature(function).parameters
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, option in fields.items():
        assert f"    {name}: " in function.__doc__
        if option.has_default:
            assert parameters[name].default == option.default
        elif option.required:
            assert parameters[name].default is inspect.Parameter.empty
        else:
            assert parameters[name].default is None
    assert set(parameters) - set(fields) <= {"overwrite", "extend", "started"}
    assert get_type_hints(function)  # names resolve


def test_a_documented_function_is_called_as_before():
    @documented(VERBS["knn"])
    def knn(run: str, **options: Any) -> tuple[str, dict[str, Any]]:
        """Measure.

        Args:
            run: a run.
            options: any other field; this line
                and this one go.
        """
        return run, options

    assert knn("a", k=3) == ("a", {"k": 3})
    assert list(inspect.signature(knn).parameters)[:2] == ["run", "backbone"]
    assert "options:" not in knn.__doc__
    assert "this one go" not in knn.__doc__
    assert "\n    k: nearest neighbours" in knn.__doc__


def test_all_mistakes_are_told_together():
    with pytest.raises(UserError) as caught:
        validate({"epochs": 0, "lr": "fast", "batchsize": 4, "head": "big", "temperature": float("nan")}, FIELDS)
    text = str(caught.value)
    for part in ("--epochs: 0 is too small", "--lr: expected a number", "did you mean 'batch_size'", "--head: 'big'"):
        assert part in text
    assert "--temperature" in text
    assert "\n" not in text


def test_numbers_of_numpy_are_numbers():
    given = validate({"epochs": np.int64(3), "lr": np.float32(0.5), "limit": np.uint8(9)}, FIELDS)
    assert [(type(value), value) for value in given.values()] == [(int, 3), (float, 0.5), (int, 9)]
    with pytest.raises(UserError, match="expected a whole number"):
        validate({"epochs": np.float32(3.5)}, FIELDS)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("6m", 360), ("2h", 7200), ("1.5m", 90), ("45", 45)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["61d", "1" + "0" * 400, "99999999h"])
def test_an_astronomic_time_is_refused_with_the_way_out(text):
    with pytest.raises(UserError, match=r"--time-budget: '.{2,20}' is too long; the most is 60d, or give --epochs or"):
        validate({"data": "x", "time_budget": text}, FIELDS)


@pytest.mark.parametrize("text", ["", "soon", "-5m", "0s", "5 weeks"])
def test_bad_durations(text):
    with pytest.raises(UserError, match="time-budget"):
        validate({"time_budget": text}, FIELDS)


def test_auto_means_leave_it_to_mocokit():
    assert validate({"device": "auto", "precision": "auto", "recipe": "auto"}, FIELDS) == {"recipe": "auto"}


def test_lengths_exclude_each_other():
    with pytest.raises(UserError, match="unknown option 'config'"):  # which only the command line has
        config_of(KnnConfig, run="r", data="d", config="x")
    with pytest.raises(UserError, match="--time-budget and --epochs exclude each other"):
        merge({"epochs": 1, "time_budget": "1m"}, {})


def test_options_have_help():
    assert all(option.help for option in FIELDS.values())


PATHS = {
    "pretrain": "data labels out recipe weights",
    **dict.fromkeys(["knn", "probe", "scorecard"], "run data labels"),
    "finetune": "run data labels out",
    "embed": "run data labels output",
    "export": "run output data",
    "search": "features queries montage run data",
    "study": "data out recipe weights labels_file",
    "select": "run data labels given output",
    "report": "run data labels output",
    "cache": "",
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_home_directory_is_expanded_in_all_paths(verb, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    fields, names = fields_of(VERBS[verb]), PATHS[verb].split()
    assert {name for name, option in fields.items() if option.path} == set(names)
    for text, expected in (("~/a", "/home/me/a"), ("~", "/home/me"), ("a/~/b", "a/~/b"), ("~nobody at all", None)):
        given = {name: [text] if name == "queries" else text for name in names}
        found = validate(given, fields)
        assert {v if isinstance(v, str) else v[0] for v in found.values()} == ({expected or text} if names else set())


def test_without_a_home_directory_a_path_below_it_is_refused(monkeypatch):
    monkeypatch.setenv("HOME", "")
    with pytest.raises(UserError, match=r"--out: '~/run': there is no home directory here; write the whole path"):
        validate({"data": "x", "out": "~/run"}, FIELDS)
    with pytest.raises(UserError, match=r"--config ~/c.yaml: .*no home directory"):
        load_config("~/c.yaml", FIELDS)
    assert validate({"data": "./~"}, FIELDS) == {"data": "./~"}
