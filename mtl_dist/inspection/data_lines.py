"""The figures of a recipe's data as lines for a terminal, in proportion: long lists are cut in the middle."""

import unicodedata
from collections.abc import Sequence

from mtl_dist.data.labels import STRINGS
from mtl_dist.inspection.data_figures import DataFigures, Leak, SourceFigures, TaskFigures
from mtl_dist.inspection.token_facts import UnknownFigures

SHOWN_CHARACTERS = 10
_MANY_TASKS = 6
_CLASSES, _CLASSES_OF_MANY = 12, 5
"""Most lines of classes of a task, where there are few tasks and where there are many."""
_NAME = 40
_WARNINGS = 20


def data_lines(figures: DataFigures) -> list[str]:
    """All figures, as tables with headings."""
    lines = ["Tasks", *_indented(task_table(figures))]
    most = _CLASSES if len(figures.tasks) <= _MANY_TASKS else _CLASSES_OF_MANY
    for task in figures.tasks:
        lines += ["", f"Classes of {printable(task.name)}", *_indented(class_table(task, figures.splits, most))]
    for source in figures.sources:
        lines += ["", f"Texts of {printable(source.name)}", *(f"  {line}" for line in text_lines(source, figures))]
    if figures.leaks:
        lines += ["", "Training texts in other splits", *(f"  {leak_line(leak)}" for leak in figures.leaks)]
    if figures.warnings:
        shown = [f"  {printable(line, None)}" for line in figures.warnings[:_WARNINGS]]
        more = len(figures.warnings) - len(shown)
        lines += ["", "Warnings", *shown, *([f"  and {more:,} more"] if more else [])]
    return lines


def task_table(figures: DataFigures) -> list[list[str]]:
    """A row for each task, below a header."""
    splits = figures.splits
    header = ["task", "source", "classes", *splits, "no label", "largest : smallest class"]
    rows = [
        [
            printable(task.name),
            printable(task.source),
            f"{len(task.classes):,}",
            *(f"{task.rows(split):,}" for split in splits),
            f"{sum(task.missing.values()):,}",
            imbalance(task),
        ]
        for task in figures.tasks
    ]
    return [header, *rows]


def imbalance(task: TaskFigures) -> str:
    """Ratio of the largest to the smallest training class; how many classes have no training rows if any has none."""
    if task.imbalance is None:
        absent = int((task.counts["train"] == 0).sum())
        return f"{absent:,} without training rows"
    return f"{task.imbalance:.1f} : 1"


def shown_classes(task: TaskFigures, most: int) -> list[int | None]:
    """Indices of the classes that are listed, the most frequent first; None stands for those left out.

    Numbers, and true and false, keep their order where all are listed.
    """
    order = task.order
    if len(order) <= most:
        return list(order) if task.kind == STRINGS else [*range(len(order))]
    last = max(1, most // 4)
    return [*order[: most - last - 1], None, *order[-last:]]


def class_table(task: TaskFigures, splits: Sequence[str], most: int) -> list[list[str]]:
    """A row for each class, at most `most`, and one for rows without a label, below a header."""
    known = [split for split in splits if split in task.counts or split in task.missing]
    listed = shown_classes(task, most)
    rows = []
    for index in listed:
        if index is not None:
            counts = [int(task.counts[split][index]) if split in task.counts else 0 for split in known]
            rows.append([printable(task.classes[index]), *(f"{count:,}" for count in counts)])
        else:
            left_out = sorted(set(range(len(task.classes))) - {one for one in listed if one is not None})
            counts = [int(task.counts[split][left_out].sum()) if split in task.counts else 0 for split in known]
            rows.append([f"... {len(left_out):,} more", *(f"{count:,}" for count in counts)])
    if any(task.missing.values()):
        rows.append(["(no label)", *(f"{task.missing.get(split, 0):,}" for split in known)])
    return [["class", *known], *rows]


def text_lines(source: SourceFigures, figures: DataFigures) -> list[str]:
    """Rows, lengths, repetitions and unknown characters of a source."""
    lengths, repeated = source.lengths, source.repeated
    columns = " and ".join(map(printable, source.text))
    share = lengths.cut / lengths.rows
    lines = [
        f"rows: {', '.join(f'{rows:,} {split}' for split, rows in source.rows.items())}; text: {columns}",
        f"tokens: median {lengths.median:,}, 95 % at most {lengths.percentile_95:,}, longest {lengths.longest:,}",
        f"cut at max_length {figures.max_length:,}: {lengths.cut:,} rows ({share:.1%})",
    ]
    if repeated.rows:
        lines.append(f"duplicates: {repeated.rows:,} rows share {repeated.texts:,} texts")
        conflicts = [f"{count:,} for {printable(task)}" for task, count in repeated.conflicts.items() if count]
        if conflicts:
            lines.append(f"texts with different labels in different rows: {', '.join(conflicts)}")
    else:
        lines.append("duplicates: none")
    return [*lines, *unknown_lines(source.unknown)]


def unknown_lines(unknown: UnknownFigures) -> list[str]:
    """What the tokenizer does not know; one line, or none where it knows everything."""
    if not unknown.rows:
        return ["unknown characters: none"]
    parts = [f"{character_name(one)} {count:,}x" for one, count in unknown.characters.most_common(SHOWN_CHARACTERS)]
    more = len(unknown.characters) - len(parts)
    lines = [f"unknown characters: in {unknown.rows:,} rows" + (f": {', '.join(parts)}" if parts else "")]
    lines[0] += f" and {more:,} more" if more > 0 else ""
    if unknown.words:
        words = [repr(printable(word)) for word, _ in unknown.words.most_common(3)]
        lines.append(f"unknown words of known characters: {unknown.words.total():,}, e.g. {', '.join(words)}")
    return lines


def character_name(character: str) -> str:
    """A character with its code point; the code point alone where it cannot be printed."""
    code = f"U+{ord(character):04X}"
    visible = character.isprintable() and not unicodedata.combining(character) and not character.isspace()
    return f"{character} ({code})" if visible else code


def leak_line(leak: Leak) -> str:
    """How many rows of a split are training texts, and of which sources."""
    line = f"{printable(leak.source)}: {leak.rows:,} of {leak.of:,} {leak.split} rows have a training text"
    others = {name: count for name, count in leak.trained_by.items() if name != leak.source}
    if not others:
        return line
    return f"{line} ({', '.join(f'{count:,} of {printable(name)}' for name, count in leak.trained_by.items())})"


def printable(text: str, most: int | None = _NAME) -> str:
    """Text from data in one line without control characters, cut at `most` characters."""
    line = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    return line if most is None or len(line) <= most else f"{line[: most - 3]}..."


def _indented(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table with aligned columns: names to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numbers = [column > 0 and all(row[column][:1].isdigit() for row in rows[1:]) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in rows
    ]
