"""The configuration of a run that begins: all is said, and what is derived is told with its reason."""

import time
from dataclasses import fields, replace

import pytest

from mocokit import distributed
from mocokit.config import PretrainConfig
from mocokit.model.encoder import encoder_spec
from mocokit.resolved import Extends, Resolved
from mocokit.runs import configuration
from mocokit.runs.configuration import complete_config, tell_derived
from mocokit.runs.request import Request, open_data
from tests.tiny_runs import TINY

GIVEN = {name: value for name, value in TINY.items() if name not in ("lr", "backbone")}


@pytest.fixture(scope="module")
def request_of(tiny_run):
    return lambda **options: Request.of({"data": str(tiny_run.data), **GIVEN, **options})


def test_what_is_given_stands_and_all_else_has_a_reason(request_of):
    request = request_of(lr=0.5)
    data = open_data(request)
    resolved = complete_config(request, data, time.perf_counter())
    config = vars(resolved.config)
    assert {name: config[name] for name in request.given} == request.given
    assert {*resolved.reasons} == {field.name for field in fields(PretrainConfig)} - {*request.given}
    trained = encoder_spec(data.store, resolved.config)
    assert complete_config(request, data, time.perf_counter(), trained).config.backbone == trained.backbone


def test_the_first_process_decides_for_all(request_of, monkeypatch):
    request = request_of()
    data = open_data(request)
    own = complete_config(request, data, time.perf_counter())
    of_first = replace(own, config=replace(own.config, lr=7.0))
    monkeypatch.setattr(
        distributed, "broadcast_object", lambda value: of_first if isinstance(value, Resolved) else value
    )
    assert complete_config(request, data, time.perf_counter()) == of_first


def test_each_value_that_was_derived_is_told_with_its_reason(request_of, monkeypatch):
    request = request_of()
    resolved = complete_config(request, open_data(request), time.perf_counter())
    told = []
    monkeypatch.setattr(configuration, "say", told.append)
    tell_derived(resolved)
    derived = {name: reason for name, reason in resolved.reasons.items() if reason != "default"}
    assert "lr" in derived
    assert told[1:] == [f"  {n} = {getattr(resolved.config, n)}  ({reason})" for n, reason in derived.items()]
    told.clear()
    tell_derived(replace(resolved, extends=Extends("runs/x", 5)))
    (line,) = told
    assert "goes on from step 5, the end of runs/x" in line
