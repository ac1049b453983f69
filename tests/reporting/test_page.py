"""HTML: whatever a name holds, it stays text."""

import json
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from mocokit.reporting.page import Section, details, page, paragraph, script_json, strip, table

NASTY = "</script><script>alert(1)</script>&\"'<!--"
text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20) | st.just(NASTY)


class Texts(HTMLParser):
    """Elements, attributes and text of HTML."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.texts = [], {}, []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= dict(attrs)

    def handle_data(self, data):
        self.texts.append(data)


@given(text)
def test_text_stays_text(value):
    for html in (paragraph(value), table(["a"], [[value]]), details(value, "")):
        found = Texts(html)
        assert "script" not in found.tags
        assert value.strip() in "".join(found.texts).replace("\r", "\n")


@given(st.recursive(text, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)))
def test_data_of_scripts_come_back_and_end_no_script(value):
    written = script_json(value)
    assert "<" not in written
    assert json.loads(written) == value


@given(st.lists(st.integers(0, 10**6), max_size=5), st.lists(text, max_size=5))
def test_strips_carry_rows_and_notes(rows, notes):
    found = Texts(strip(rows, notes)).attributes
    assert json.loads(found["data-rows"]) == rows
    if notes:
        assert json.loads(found["data-notes"]) == notes


def test_columns_of_numbers_are_to_the_right():
    html = table(["name", "n"], [["a", 1], ["b", 22]], [1])
    assert html.count('class="number"') == 3
    assert "<thead>" not in table(["", ""], [["a", "b"]])


def test_a_page_is_whole_and_allows_no_request():
    html = page("t<", "<p>lead</p>", [Section("a", "A", "<p>x</p>"), Section("b", "", "left out")], {"n": 1}, "")
    assert html.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in html
    assert "<title>t&lt;</title>" in html
    assert '<section id="a">' in html
    assert "left out" not in html
    assert html.rstrip().endswith("</html>")
