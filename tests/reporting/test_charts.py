"""Charts: every point is in them, and what draws them is in the page."""

import numpy as np
import pytest

from mocokit.reporting.charts import curves, embedded, map_chart, palette

pytest.importorskip("bokeh")


@pytest.mark.parametrize("count", [0, 1, 10, 11, 20, 21, 200])
def test_a_colour_for_each_kind(count):
    colours = palette(count)
    assert len(colours) == count
    assert len(set(colours)) == count
    assert all(colour.startswith("#") for colour in colours)


@pytest.mark.parametrize("kinds", [0, 1, 30])
def test_the_map_has_every_point(kinds):
    positions = np.arange(12, dtype=np.float32).reshape(6, 2)
    codes = np.array([-1, 0, 1, 2, 3, 4])
    chart = map_chart(positions, codes, kinds)
    data = chart.renderers[0].data_source.data
    assert np.array_equal(np.stack([data["x"], data["y"]], axis=1), positions)
    assert data["c"].tolist() == codes.tolist()
    mapper = chart.select_one({"name": "colours"})
    assert (mapper.low, mapper.high) == (-0.5, max(1, kinds) - 0.5)
    assert len(mapper.palette) == max(1, kinds)


def test_curves_leave_out_what_was_not_measured():
    steps = np.array([0.0, 50, 100])
    chart = curves("loss", steps, {"a": np.array([np.nan, 2.0, 1.0]), "b": np.array([1.0, np.nan, np.nan])})
    lines = [r.data_source.data for r in chart.renderers if type(r.glyph).__name__ == "Line"]
    assert [line["x"].tolist() for line in lines] == [[50, 100], [0]]
    assert [line["y"].tolist() for line in lines] == [[2, 1], [1]]


def contrast(one, other):
    """WCAG 2.2's contrast ratio of two sRGB colours "#rrggbb"."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return np.dot(
            [0.2126, 0.7152, 0.0722], [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        )

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_text_is_readable_on_white_and_in_the_dark_on_black():
    chart = curves("loss", np.array([0.0, 1]), {"a": np.array([1.0, 2]), "b": np.array([1.0, 2])})
    inks = {chart.title.text_color, chart.legend[0].label_text_color}
    inks |= {colour for axis in chart.axis for colour in (axis.axis_label_text_color, axis.major_label_text_color)}
    assert min(contrast(ink, paper) for ink in inks for paper in ("#ffffff", "#000000")) >= 4.5


def test_the_scripts_load_nothing():
    script, elements = embedded([curves(t, np.array([0.0, 1]), {"a": np.array([1.0, 2])}) for t in "ab"])
    assert len(elements) == 2
    assert "<script src" not in script
    assert len(script) > 500_000  # Bokeh itself
    assert embedded([]) == ("", [])
