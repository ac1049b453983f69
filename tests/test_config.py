"""The options of every verb: each explained, its default allowed, and without torch."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mocokit import config
from mocokit.errors import UserError
from mocokit.options import fields_of, validate

CLASSES = [
    value
    for value in vars(config).values()
    if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == config.__name__
]


@pytest.mark.parametrize("options", CLASSES, ids=lambda c: c.__name__)
def test_every_option_is_explained_and_its_default_is_allowed(options):
    fields = fields_of(options)
    for name, option in fields.items():
        assert option.help, name
        assert not option.help.endswith("."), name
        if option.has_default and option.default not in (None, ()):
            assert validate({name: option.default}, fields) == {name: option.default}


@given(st.integers(-(10**6), 10**6))
def test_whole_numbers_are_taken_within_their_range_alone(value):
    option = config.FIELDS["queue_size"]
    if value >= option.low:
        assert validate({"queue_size": value}, config.FIELDS) == {"queue_size": value}
    else:
        with pytest.raises(UserError, match="--queue-size"):
            validate({"queue_size": value}, config.FIELDS)
