"""The charts of a report, by Bokeh, which puts itself into the page: the map of all images, and curves of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MAP, CURVE = 640, 220  # heights in pixels
MOVING = 2500  # points that are drawn while the map moves
UNKNOWN = "#9aa0a6"  # of points without a value
_INK, _GRID = "#767676", "#80868b40"  # a contrast of 4.5 on white and on black (page.css)


def palette(count: int) -> list[str]:
    """Colours of so many kinds; beyond twenty they are shades that are told apart by their place in the list alone."""
    from bokeh.palettes import Category10, Category20, turbo

    if count <= 10:
        return list(Category10[10][:count])
    return list(Category20[20][:count]) if count <= 20 else list(turbo(count))


def map_chart(positions: np.ndarray, codes: np.ndarray, kinds: int) -> Any:
    """The points [N, 2] of the map in the colours of ``codes`` [N], whole numbers below ``kinds``, -1 for none.

    The page finds it by the name "map", its points by "points" and its colours by "colours".
    """
    from bokeh.models import (
        BoxSelectTool,
        ColumnDataSource,
        CustomJS,
        HoverTool,
        LassoSelectTool,
        LinearColorMapper,
        PanTool,
        ResetTool,
        TapTool,
        WheelZoomTool,
    )
    from bokeh.plotting import figure

    columns = {"x": positions[:, 0], "y": positions[:, 1], "c": codes.astype(np.float32)}
    source = ColumnDataSource({name: np.ascontiguousarray(column) for name, column in columns.items()}, name="points")
    colours = LinearColorMapper(
        palette=palette(max(1, kinds)), low=-0.5, high=max(1, kinds) - 0.5, low_color=UNKNOWN, name="colours"
    )
    hover = CustomJS(code="window.mocokitReport?.hover(cb_data.index.indices)")
    lasso = LassoSelectTool(continuous=False)
    tools = [PanTool(), WheelZoomTool(), BoxSelectTool(), lasso, TapTool(), ResetTool()]
    chart = figure(name="map", height=MAP, sizing_mode="stretch_width", match_aspect=True, tools=tools)
    # Not by WebGL, which takes seconds a frame where there is no GPU; while it moves, some of the points are drawn.
    chart.lod_threshold, chart.lod_factor = MOVING, max(1, len(positions) // MOVING)
    chart.toolbar.active_scroll = tools[1]
    chart.add_tools(HoverTool(tooltips=None, callback=hover))
    many = len(positions)
    chart.scatter(
        "x",
        "y",
        source=source,
        size=9 if many <= 1_000 else 6 if many <= 10_000 else 3,
        color={"field": "c", "transform": colours},
        line_color=None,
        alpha=0.8,
        nonselection_alpha=0.08,
    )
    source.selected.js_on_change("indices", CustomJS(code="window.mocokitReport?.select(cb_obj.indices)"))
    chart.axis.visible = False
    chart.grid.visible = False
    return _plain(chart)


def curves(title: str, x: np.ndarray, lines: Mapping[str, np.ndarray]) -> Any:
    """A chart of one or two ``lines`` by name over the steps ``x`` [R]; a point without a value is left out."""
    from bokeh.plotting import figure

    chart = figure(title=title, height=CURVE, sizing_mode="stretch_width", tools="hover", toolbar_location=None)
    for (name, y), colour in zip(lines.items(), palette(10), strict=False):
        known = ~np.isnan(y)
        legend = {"legend_label": name} if len(lines) > 1 else {}
        chart.line(x[known], y[known], line_width=2, color=colour, **legend)
        if known.sum() < 50:
            chart.scatter(x[known], y[known], size=5, color=colour, **legend)
    chart.xaxis.axis_label = "step"
    return _plain(chart)


def _plain(chart: Any) -> Any:
    """On the page's own background, in colours that are readable on light and dark."""
    chart.background_fill_color = chart.border_fill_color = chart.outline_line_color = None
    chart.toolbar.logo = None
    chart.title.text_color = _INK
    chart.grid.grid_line_color = _GRID
    for axis in chart.axis:
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = _INK
        axis.axis_label_text_color = axis.major_label_text_color = _INK
    for legend in chart.legend:
        legend.background_fill_alpha, legend.label_text_color, legend.border_line_color = 0, _INK, None
        legend.orientation = "horizontal"
        chart.add_layout(legend, "below")
    return chart


def embedded(charts: Sequence[Any]) -> tuple[str, list[str]]:
    """The scripts that draw ``charts``, Bokeh itself among them, and the element of each; nothing is loaded."""
    from bokeh.embed import components
    from bokeh.resources import Resources

    if not charts:
        return "", []
    script, elements = components(tuple(charts))
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    return library + script, list(elements)
