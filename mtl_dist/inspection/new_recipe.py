"""From tables to a commented recipe: what `mtl-dist init` does."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtl_dist.data.labels import similar_names
from mtl_dist.data.reading.files import find_files
from mtl_dist.errors import UserError
from mtl_dist.inspection.column_profile import ColumnProfile
from mtl_dist.inspection.encoder_choice import choose_encoder
from mtl_dist.inspection.recipe_text import RecipeParts, describe_classes, recipe_text
from mtl_dist.inspection.settings import settings_for
from mtl_dist.inspection.source_plan import SourcePlan, plan_sources, slug, task_names
from mtl_dist.inspection.table_groups import group_files, split_of, stem
from mtl_dist.inspection.table_scan import Scan, scan
from mtl_dist.inspection.text_lengths import Texts, read_texts, token_lengths
from mtl_dist.inspection.yaml_words import comment
from mtl_dist.progress import show_progress

_COLUMN_WIDTH = 24


@dataclass(frozen=True)
class Options:
    """Decisions that the user of `mtl-dist init` has made."""

    to: Path | None = None
    text: Sequence[str] = ()
    labels: Sequence[str] = ()
    encoder: str | None = None
    encoder_folders: Sequence[Path] = field(default_factory=list)
    """Folders that may hold an encoder, in the order in which they are taken."""


@dataclass(frozen=True)
class NewRecipe:
    """A recipe that is not written yet."""

    path: Path
    text: str
    lines: list[str]
    """Lines for people to read: what was decided, and why."""


def propose(files: Sequence[str], options: Options) -> NewRecipe:
    """Reads `files` and decides on a recipe. Raises UserError for files, columns or options that cannot be used."""
    paths = find_files("FILE", files)
    path = options.to or Path(f"{_stem(paths)}.yaml")
    if path.exists():
        raise UserError(f"{path}: is there already; --to FILE writes the recipe elsewhere")
    if not path.parent.is_dir():
        raise UserError(f"--to: {path.parent} is no folder")
    groups, lines = group_files(_scans(paths))
    sources = plan_sources(groups, options.text, options.labels)
    encoder = choose_encoder(options.encoder, options.encoder_folders)
    texts = _texts(sources)
    lengths = token_lengths(texts, encoder.tokenizer)
    rows = sum(round(source.rows * (1 - sum(source.shares.values()))) for source in sources)
    parts = RecipeParts(
        path,
        f"runs/{slug(path.stem, 'data')}",
        sources,
        task_names(sources),
        encoder,
        lengths,
        settings_for(rows, lengths, encoder.blocks, encoder.positions, encoder.small, len(sources)),
        sum(found.blank for found in texts),
    )
    lines += [line for source in sources for line in _describe(source)]
    return NewRecipe(path, recipe_text(parts), [*lines, *_describe_settings(parts)])


def _texts(sources: Sequence[SourcePlan]) -> list[Texts]:
    """The texts of each source."""
    found = []
    with show_progress("reading texts", "rows", sum(source.rows for source in sources), last_line=False) as advance:
        for source in sources:
            tables = [one.table for one in source.group.splits["train"]]
            found.append(read_texts(tables, source.text, advance))
            if not found[-1].sample:
                raise UserError(f"{tables[0].path}: no row has a text in {' and '.join(map(repr, source.text))}")
    return found


def _stem(paths: Sequence[str]) -> str:
    """Name of the first file, without that of its split where it is one of several splits."""
    rest, split = split_of(paths[0])
    name = rest if split is not None and rest and len(paths) > 1 else stem(paths[0])
    return name.lstrip(".") or "recipe"


def _scans(paths: Sequence[str]) -> list[Scan]:
    found = []
    for path in paths:
        with show_progress(path, "rows", None) as advance:
            found.append(scan(path, advance))
    return found


def _describe(source: SourcePlan) -> list[str]:
    """What was decided on a source and its columns."""
    scans = source.group.splits["train"]
    files = scans[0].table.path if len(scans) == 1 else f"{scans[0].table.path} and {len(scans) - 1} more"
    lines = [f"{comment(files)}: {source.rows:,} rows, {len(source.roles)} columns; source {source.name}"]
    lines += [f"  {note}" for note in dict.fromkeys([*(note for one in scans for note in one.notes), *source.notes])]
    width = min(_COLUMN_WIDTH, max(len(comment(name)) for name in source.roles))
    for name, role in source.roles.items():
        shown = comment(name)
        shown = shown if len(shown) <= width else f"{shown[: width - 3]}..."
        use = {"text": "text", "label": "label", "none": "left out"}[role.use]
        lines.append(f"  {shown:{width}}  {use}: {comment(role.why)}")
        if role.use == "label":
            lines[-1] += _describe_label(source.columns[name])
    if source.shares:
        shares = " and ".join(f"{share:.0%} for {split}" for split, share in source.shares.items())
        lines.append(f"  split: {shares}, because there are no files for these")
    return lines


def _describe_label(column: ColumnProfile) -> str:
    missing = f"; {column.missing:,} rows without" if column.missing else ""
    alike = similar_names(column.counts or {})
    note = f"; {', '.join(map(repr, alike[0]))} differ only in how they are written" if alike else ""
    return f", {len(column.counts or {}):,} classes: {describe_classes(column)}{missing}{note}"


def _describe_settings(parts: RecipeParts) -> list[str]:
    settings, lengths, about = parts.settings, parts.lengths, "about " if parts.lengths.estimated else ""
    lines = [
        f"encoder: {comment(parts.encoder.name)}: {parts.encoder.why}",
        f"max_length: {settings.max_length}, as 95 % of the texts have {about}{lengths.percentile_95} tokens or fewer",
        f"training: about {settings.total_steps:,} steps of {settings.batch_size} rows in three phases",
    ]
    if parts.blank:
        lines.append(f"data.empty_text: skip, because {parts.blank:,} rows have no text")
    return lines
