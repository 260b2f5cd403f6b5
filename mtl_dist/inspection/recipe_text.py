"""The commented recipe that `mtl-dist init` writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtl_dist.config.data_recipe import ReadConfig
from mtl_dist.inspection.column_profile import ColumnProfile
from mtl_dist.inspection.column_roles import kind_of
from mtl_dist.inspection.encoder_choice import EncoderChoice
from mtl_dist.inspection.settings import Lengths, Settings
from mtl_dist.inspection.source_plan import SourcePlan
from mtl_dist.inspection.yaml_words import comment, word, words

SCHEMA = "recipe.schema.json"
"""Where docs/first-run.md puts the schema that editors complete a recipe by."""
_CLASSES = 6
_NAME = 24
_WIDTH = 118
_PHASES = ("heads", "upper", "all")


@dataclass(frozen=True)
class RecipeParts:
    """What a new recipe is written from."""

    path: Path
    """File that the recipe will be written to."""
    output_dir: str
    sources: list[SourcePlan]
    tasks: list[tuple[str, SourcePlan, str]]
    """Name, source and label column of each task."""
    encoder: EncoderChoice
    lengths: Lengths
    settings: Settings
    blank: int
    """Number of rows without text."""


def recipe_text(parts: RecipeParts) -> str:
    """The recipe as YAML; each comment says what a value means and what else could be there."""
    lines = [
        *_head(parts),
        *_sources(parts.sources),
        *_tasks(parts),
        *_data(parts),
        *_model(parts.encoder),
        *_training(parts),
    ]
    return "\n".join(lines) + "\n"


def describe_classes(column: ColumnProfile) -> str:
    """The classes of a label column with their rows, cut where there are many: numbers in order, else by frequency."""
    numeric = kind_of(column) == "whole numbers"
    counts = sorted((column.counts or {}).items(), key=lambda one: float(one[0]) if numeric else -one[1])
    shown = [f"{comment(_cut(value))} ({count:,})" for value, count in counts[:_CLASSES]]
    more = f", and {len(counts) - _CLASSES:,} more" if len(counts) > _CLASSES else ""
    return ", ".join(shown) + more


def _cut(value: str) -> str:
    return value if len(value) <= _NAME else f"{value[: _NAME - 3]}..."


def _head(parts: RecipeParts) -> list[str]:
    lines = [
        f"# Written by mtl-dist init. Change what you like, then: mtl-dist train {comment(parts.path.name)}",
        "# `mtl-dist config --keys` lists every key; paths are relative to the folder that commands run in.",
    ]
    if (parts.path.parent / SCHEMA).is_file():
        return [f"# yaml-language-server: $schema={SCHEMA}", *lines]
    return lines


def _sources(sources: Sequence[SourcePlan]) -> list[str]:
    lines = ["", "# The tables. Each row goes through the encoder once for all tasks that use its source.", "sources:"]
    for source in sources:
        first = source.group.splits["train"][0]
        lines += [
            f"  {word(source.name)}:",
            f"    path: {first.table.format}",
            *_files(source),
            *_read(first.table.read),
            f"    text: {words(source.text)}{_text_comment(source)}",
            *_split(source),
        ]
    return lines


def _files(source: SourcePlan) -> list[str]:
    splits = {split: words([one.table.path for one in scans]) for split, scans in source.group.splits.items()}
    if list(splits) == ["train"]:
        return [f"    data_files: {splits['train']}"]
    return ["    data_files:", *(f"      {split}: {files}" for split, files in splits.items())]


def _read(read: ReadConfig) -> list[str]:
    """The key `read` with what differs from its defaults."""
    default = ReadConfig()
    changed = {name: value for name, value in read if value != getattr(default, name)}
    if not changed:
        return []
    values = {
        name: "null" if value is None else str(value).lower() if isinstance(value, bool) else word(value)
        for name, value in changed.items()
    }
    return [f"    read: {{{', '.join(f'{name}: {value}' for name, value in values.items())}}}"]


def _text_comment(source: SourcePlan) -> str:
    return "  # read as a pair" if len(source.text) == 2 else "  # two columns, [a, b], would be read as a pair"


def _split(source: SourcePlan) -> list[str]:
    if not source.shares:
        return []
    shares = ", ".join(f"{split}: {share}" for split, share in source.shares.items())
    return [
        "    # Shares of the rows that are held out; equal texts stay on one side. by: COLUMN keeps e.g. all rows of a",
        "    # customer on one side; stratify: COLUMN gives each side its share of every class.",
        f"    split: {{{shares}}}",
    ]


def _tasks(parts: RecipeParts) -> list[str]:
    lines = [
        "",
        "# One head each; delete those that you do not want. Rows without a label for a task do not train that task.",
        "tasks:",
    ]
    for name, source, label in parts.tasks:
        column = source.columns[label]
        classes = f"{len(column.counts or {}):,} classes ({kind_of(column)})"
        missing = f"; {column.missing:,} rows have none" if column.missing else ""
        lines += [
            f"  {word(name)}:",
            f"    source: {word(source.name)}",
            *_commented(f"    label: {word(label)}", f"{classes}: {describe_classes(column)}{missing}"),
        ]
    lines += [
        "    # labels: [low, high] would fix the classes and their order, {0: low, 1: high} their names too;",
        "    # weight: 2.0 would count this task's loss twice.",
    ]
    return lines


def _commented(line: str, text: str) -> list[str]:
    """A line with its comment behind it, or above it where both do not fit."""
    if len(line) + len(text) + 4 <= _WIDTH:
        return [f"{line}  # {text}"]
    indent = line[: len(line) - len(line.lstrip())]
    return [f"{indent}# {text}", line]


def _data(parts: RecipeParts) -> list[str]:
    lengths, about = parts.lengths, " of a text, estimated from characters" if parts.lengths.estimated else " of a text"
    lines = [
        "",
        "data:",
        f"  # Tokens{about}: median {lengths.median}, 95 % at most {lengths.percentile_95}, longest {lengths.longest}.",
        "  # Longer texts are cut here; time and memory grow with it.",
        f"  max_length: {parts.settings.max_length}",
    ]
    if parts.blank:
        lines.append(f"  empty_text: skip  # {parts.blank:,} rows have no text; error would refuse them")
    return lines


def _model(encoder: EncoderChoice) -> list[str]:
    pooling = "what this encoder was trained with; or first_token" if encoder.pooling == "mean" else "or mean"
    return [
        "",
        "model:",
        *_commented(f"  encoder: {word(encoder.name)}", f"a folder, or a name on the hub; {comment(encoder.why)}"),
        f"  pooling: {encoder.pooling}  # {pooling}",
    ]


def _training(parts: RecipeParts) -> list[str]:
    settings = parts.settings
    trained = {
        "heads": ("[heads]", "the encoder is frozen"),
        "upper": (
            f'[heads, "blocks[-{settings.upper}:]"]',
            f"the upper {settings.upper} of {parts.encoder.blocks} blocks",
        ),
        "all": ("[all]", "everything"),
    }
    phases = [
        f"  - {{name: {name}, train: {trained[name][0]}, epochs: {epochs:g}}}  # {trained[name][1]}"
        for name, epochs in zip(_PHASES, settings.epochs, strict=True)
    ]
    return [
        "",
        f"batch_size: {settings.batch_size}  # rows in each step, over all processes",
        "",
        "# What trains when, and for how many passes over the training rows: from the heads down.",
        "phases:",
        *phases,
        "",
        "optimizer:",
        f"  lr: {_rate(settings.lr)}  # of the encoder; heads take 5 times as much (head_lr_multiplier)",
        f"  warmup_steps: {settings.warmup_steps}  # of about {settings.total_steps:,} steps",
        "",
        f"output_dir: {word(parts.output_dir)}  # model, metrics, report and checkpoints; the same command resumes",
    ]


def _rate(value: float) -> str:
    """A learning rate as recipes write it: 2.0e-5."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
