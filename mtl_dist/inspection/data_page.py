"""The figures of a recipe's data as an HTML page in the style of the report, which loads nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mtl_dist.inspection.data_figures import DataFigures, SourceFigures
from mtl_dist.inspection.data_lines import character_name, class_table, leak_line, printable, task_table
from mtl_dist.report.formatting import percent
from mtl_dist.report.page import render_page
from mtl_dist.report.sections.section import Section
from mtl_dist.report.templating import render

_CLASSES = 60
_CHARACTERS = 50


@dataclass(frozen=True)
class PageTable:
    """A table with a title and lines of text above it."""

    title: str
    rows: Sequence[tuple[str, Sequence[str]]] = ()
    """Name and cells of each row."""
    header: Sequence[str] = ()
    lines: Sequence[str] = ()


def data_page(title: str, figures: DataFigures) -> str:
    """Returns the page; `title` is the name of the recipe."""
    sections = [
        Section("Tasks", _tables(_as_table("", task_table(figures)))),
        Section("Classes", _tables(*_classes(figures))),
        Section("Texts", _tables(_lengths(figures)), f"Tokens as {figures.encoder} reads them, special ones included."),
        Section("Duplicates", _tables(_duplicates(figures))),
        Section("Leaks", _tables(_leaks(figures))),
        Section("Unknown characters", _tables(*map(_unknown, figures.sources))),
    ]
    if figures.warnings:
        sections.append(Section("Warnings", _tables(PageTable("", lines=figures.warnings))))
    facts = [
        ("tasks", f"{len(figures.tasks):,}"),
        ("rows", f"{sum(sum(one.rows.values()) for one in figures.sources):,}"),
        ("encoder", figures.encoder),
        ("max_length", f"{figures.max_length:,}"),
    ]
    return render_page("data.html", title, sections, facts=facts)


def _tables(*tables: PageTable) -> Markup:
    return render("data_tables.html", tables=tables)


def _as_table(title: str, rows: Sequence[Sequence[str]], lines: Sequence[str] = ()) -> PageTable:
    return PageTable(title, [(row[0], row[1:]) for row in rows[1:]], rows[0], lines)


def _classes(figures: DataFigures) -> list[PageTable]:
    return [
        _as_table(printable(task.name), class_table(task, figures.splits, _CLASSES), [task.kind] if task.kind else [])
        for task in figures.tasks
    ]


def _lengths(figures: DataFigures) -> PageTable:
    rows = [
        (
            printable(one.name),
            [
                ", ".join(map(printable, one.text)),
                f"{one.lengths.rows:,}",
                f"{one.lengths.median:,}",
                f"{one.lengths.percentile_95:,}",
                f"{one.lengths.longest:,}",
                f"{one.lengths.cut:,} ({percent(one.lengths.cut / one.lengths.rows, 1)})",
            ],
        )
        for one in figures.sources
    ]
    return PageTable("", rows, ["source", "text", "rows", "median", "95th percentile", "longest", "cut at max_length"])


def _duplicates(figures: DataFigures) -> PageTable:
    rows = [
        (
            printable(one.name),
            [
                f"{one.repeated.rows:,}",
                f"{one.repeated.texts:,}",
                ", ".join(f"{printable(task)} {count:,}" for task, count in one.repeated.conflicts.items() if count)
                or "none",
            ],
        )
        for one in figures.sources
    ]
    return PageTable("", rows, ["source", "rows whose text repeats", "texts", "texts with different labels"])


def _leaks(figures: DataFigures) -> PageTable:
    lines = [leak_line(leak) for leak in figures.leaks]
    return PageTable("", lines=lines or ["No text of validation or test is a training text."])


def _unknown(source: SourceFigures) -> PageTable:
    unknown = source.unknown
    if not unknown.rows:
        return PageTable(printable(source.name), lines=["The tokenizer knows every character."])
    found = [(character_name(one), [f"{count:,}"]) for one, count in unknown.characters.most_common(_CHARACTERS)]
    words = [(printable(word), [f"{count:,}"]) for word, count in unknown.words.most_common(_CHARACTERS // 5)]
    lines = [f"In {unknown.rows:,} rows, the tokenizer reads the unknown token in place of something."]
    return PageTable(printable(source.name), [*found, *words], ["character or word", "occurrences"], lines)
