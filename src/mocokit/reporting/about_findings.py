"""Sections on what was found in the images: what to look into, what to label first, and shortcuts."""

from collections.abc import Sequence
from itertools import groupby

from mocokit.data.notes import count
from mocokit.reporting.images import ReportImages
from mocokit.reporting.page import Section, details, paragraph, strip, table
from mocokit.reporting.shortcuts import LEAST, Shortcut, Shortcuts
from mocokit.reporting.suggestions import Suggestion

SHOWN = 40  # pictures of a suggestion


def suggestion_section(found: Sequence[Suggestion], images: ReportImages, folder: str) -> Section:
    """Each kind with its definition and the most striking images; ``folder`` is where the whole lists are."""
    html = paragraph("Suggestions: nothing is deleted, and none of it need be wrong.")
    html += paragraph(f"The whole lists are CSV files in {folder}/ beside this page.", "faint")
    for suggestion in found:
        many = count(len(suggestion.rows), "image", "images") if len(suggestion.rows) else "none"
        html += f"<h3>{suggestion.title}: {many}</h3>" + paragraph(suggestion.definition, "faint")
        html += _pictures(suggestion, images)
        if more := len(suggestion.rows) - len(shown_rows(suggestion)):
            html += paragraph(f"and {more:,} more in {folder}/{suggestion.key}.csv", "faint")
    return Section("look-into", "What to look into", html)


def shown_rows(suggestion: Suggestion) -> list[int]:
    """The rows of which there are pictures, in whole groups unless the first is larger than all that is shown."""
    rows, groups = suggestion.rows[:SHOWN].tolist(), suggestion.groups
    if groups is not None and len(groups) > SHOWN and groups[0] != groups[SHOWN]:
        return [row for row, group in zip(rows, groups, strict=False) if group != groups[SHOWN]]
    return rows


def _pictures(suggestion: Suggestion, images: ReportImages) -> str:
    rows = shown_rows(suggestion)
    notes = _notes(suggestion, images)[: len(rows)]
    if suggestion.groups is None:
        return strip(rows, notes) if rows else ""
    together = groupby(zip(suggestion.groups.tolist(), rows, notes, strict=False), key=lambda item: item[0])
    groups = ((list(zip(*items, strict=True))) for _, items in together)
    return f'<div class="strip">{"".join(strip(g[1], g[2], "group") for g in groups)}</div>'


def _notes(suggestion: Suggestion, images: ReportImages) -> list[str]:
    """What stands before the name of each image: its number, and of a possible label error both classes."""
    number, *_ = suggestion.columns.values()
    notes = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in number]
    others, names, labels = suggestion.columns.get("suggested class"), images.label_names, images.labels
    if others is None or names is None or labels is None:
        return notes
    own = [names[label] for label in labels[suggestion.rows]]
    return [f"{one}, or {other}? {note}" for one, other, note in zip(own, others, notes, strict=True)]


def label_first_section(rows: Sequence[int]) -> Section:
    """What ``mocokit select`` has chosen."""
    title = "What to label first" if rows else ""
    text = "As mocokit select has chosen, in this order: typical images that together cover the others."
    return Section("label-first", title, paragraph(text) + strip(rows))


def shortcut_section(found: Shortcuts) -> Section:
    """How well the features tell what should not matter, most of all what they tell best beside chance."""
    text = (
        "How often a linear classifier on the features names things that should not matter, on images that it was not "
        "trained on. What is told far above chance, and above random initialisation, may be a shortcut: features that "
        "look good then fail elsewhere."
    )

    def row(told: Shortcut) -> tuple[str, ...]:
        measured = ((told.right, told.interval), (told.untrained, told.untrained_interval))
        shares = (f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})" for share, (low, high) in measured)
        others = ("" if share is None else f"{100 * share:.0f} %" for share in (told.chance, told.by_class))
        change = f"training made it {told.change} to tell" if told.change else ""
        return (f"{told.name} (one of {len(told.values)})", *shares, *others, f"{told.images:,}", change)

    told = sorted(found.told, key=lambda told: told.chance - told.right)
    html = paragraph(text)
    if told or found.label:
        head = ("told", "by the features", "random init", "chance", "by the class alone", "images", "")
        rows = [row(one) for one in [*told, *([found.label] if found.label else [])]]
        html += table(head, rows, (1, 2, 3, 4, 5))
    html += "".join(paragraph(str(one)[0].upper() + str(one)[1:] + ".") for one in told if one.change == "easier")
    values = "; ".join(f"{one.name}: {', '.join(one.values)}" for one in told)
    but, other = (" but the class", " else") if found.label else ("", "")
    none = f"Nothing{but} was asked: of nothing{other} are there two values with {LEAST} images each."
    html += details("what the values are", paragraph(values)) if values else paragraph(none)
    html += "".join(paragraph(note, "faint") for note in found.notes)
    return Section("shortcuts", "Shortcuts", html)
