"""Sections on what was found: groups stay together, the most striking first, nothing is hidden."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mocokit.reporting import about_findings
from mocokit.reporting.shortcuts import Shortcut, Shortcuts
from mocokit.reporting.suggestions import Suggestion

IMAGES = SimpleNamespace(label_names=("a", "<c>"), labels=np.arange(100) % 2)


def rows_of(html):
    return [json.loads(rows) for rows in re.findall(r'data-rows="(.*?)"', html)]


def test_groups_are_strips_of_their_own():
    rows, groups = np.array([5, 9, 2, 3, 4]), np.array([1, 1, 2, 2, 2])
    found = Suggestion("near-duplicates", "Near", "def", rows, {"correlation": [0.99, 0.99, 0.9, 0.9, 0.91]}, groups)
    html = about_findings.suggestion_section([found], IMAGES, "report-lists").html
    assert rows_of(html) == [[5, 9], [2, 3, 4]]
    assert "Near: 5 images" in html
    assert "report-lists/" in html


def test_long_lists_say_where_the_rest_is():
    rows = np.arange(100)
    found = Suggestion("outliers", "Outliers", "def", rows, {"distance": [float(n) for n in rows]})
    html = about_findings.suggestion_section([found], IMAGES, "lists").html
    assert rows_of(html) == [list(range(40))] == [about_findings.shown_rows(found)]
    assert "and 60 more in lists/outliers.csv" in html
    assert "&quot;39&quot;" in html


def test_no_group_is_cut():
    rows, groups = np.arange(90), np.repeat([1, 2, 3], [30, 15, 45])
    found = Suggestion("near-duplicates", "Near", "def", rows, {"correlation": [0.9] * 90}, groups)
    html = about_findings.suggestion_section([found], IMAGES, "lists").html
    assert rows_of(html) == [list(range(30))] == [about_findings.shown_rows(found)]
    assert "and 60 more in lists/near-duplicates.csv" in html
    large = replace(found, groups=np.repeat([1, 2], [45, 45]))
    assert about_findings.shown_rows(large) == list(range(40))
    whole = replace(found, groups=np.repeat([1, 2, 3], [30, 10, 50]))
    assert about_findings.shown_rows(whole) == list(range(40))


def test_what_finds_nothing_says_so_and_errors_name_the_other_class():
    none = Suggestion("blank", "Blank", "def", np.array([], int), {"deviation": []})
    wrong = Suggestion("label-errors", "Errors", "d", np.array([3]), {"share": [0.5], "suggested class": ["<b>"]})
    html = about_findings.suggestion_section([none, wrong], IMAGES, "lists").html
    assert "Blank: none" in html
    assert "<b>" not in html
    assert "&lt;c&gt;, or &lt;b&gt;? 0.5" in html
    assert rows_of(html) == [[3]]
    assert "Errors: 1 image<" in html


def test_what_to_label_first():
    assert rows_of(about_findings.label_first_section([7, 1]).html) == [[7, 1]]
    assert about_findings.label_first_section([]).title == ""


def shortcut(name, **values):
    given = {"values": ("a", "b"), "left_out": 0, "images": 50, "right": 0.9, "interval": (0.8, 0.95), "untrained": 0.6}
    given |= {"untrained_interval": (0.5, 0.7), "chance": 0.5, "by_class": None, "change": None}
    return Shortcut(name, **(given | values))


def test_shortcuts_that_tell_most_come_first():
    told = [shortcut("size", right=0.55), shortcut("<folder>", change="easier", by_class=0.25), shortcut("format")]
    html = about_findings.shortcut_section(Shortcuts(told, shortcut("class"), ["a note"])).html
    places = [html.index(text) for text in ("&lt;folder&gt; (one", "format (one", "size (one", "class (one", "a note")]
    assert places == sorted(places)
    assert "90 % (80 to 95)" in html
    assert "60 % (50 to 70)" in html
    assert html.count("The features tell") == 1
    none = about_findings.shortcut_section(Shortcuts([], None, [])).html
    assert "Nothing was asked: of nothing are there two values with 10 images each." in none


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (shortcut("class"), "Nothing but the class was asked: of nothing else are"),
        (None, "Nothing was asked: of nothing are"),
    ],
)
def test_where_nothing_could_be_asked_the_class_is_not_denied(label, said):
    html = about_findings.shortcut_section(Shortcuts([], label, [])).html
    assert said in html
    assert ("class (one" in html) == (label is not None)
