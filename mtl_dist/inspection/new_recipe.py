"""From tables to a commented recipe: what `mtl-dist init` does."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtl_dist.data.reading.files import find_files
from mtl_dist.errors import UserError
from mtl_dist.inspection.column_roles import nearly_equal
from mtl_dist.inspection.encoder_choice import choose_encoder
from mtl_dist.inspection.recipe_text import RecipeParts, describe_classes, recipe_text
from mtl_dist.inspection.settings import settings_for
from mtl_dist.inspection.source_plan import SourcePlan, plan_sources, slug, task_names
from mtl_dist.inspection.table_groups import group_files, split_of, stem
from mtl_dist.inspection.table_scan import Scan, scan
from mtl_dist.inspection.text_lengths import read_texts, token_lengths
from mtl_dist.inspection.yaml_words import comment
from mtl_dist.progress import show_progress

_COLUMN_WIDTH = 24


@dataclass(frozen=True)
class Options:
    """What the user has decided."""

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
    """What was decided, and why."""


def propose(files: Sequence[str], options: Options) -> NewRecipe:
    """Reads `files` and decides on a recipe. Raises UserError for files, columns or options that cannot be used."""
    paths = find_files("FILE", files)
    path = options.to or Path(f"{_stem(paths)}.yaml")
    if path.exists():
        raise UserError(f"{path}: is there already; --to FILE writes the recipe elsewhere")
    if not path.parent.is_dir():
        raise UserError(f"--to: {path.parent} is no folder")
    scans = _scans(paths)
    groups, lines = group_files(scans)
    sources = plan_sources(groups, options.text, options.labels)
    for source in sources:
        lines += _describe(source)
    encoder = choose_encoder(options.encoder, options.encoder_folders)
    with show_progress("reading texts", "rows", sum(source.rows for source in sources)) as advance:
        texts = [
            read_texts([one.table for one in source.group.splits["train"]], source.text, advance) for source in sources
        ]
    for source, found in zip(sources, texts, strict=True):
        if not found.sample:
            raise UserError(f"{source.group.splits['train'][0].table.path}: no row has a text in {source.text[0]!r}")
    lengths = token_lengths(texts, encoder.tokenizer)
    rows = sum(round(source.rows * (1 - sum(source.shares.values()))) for source in sources)
    settings = settings_for(rows, lengths, encoder.blocks, encoder.positions, encoder.small, len(sources))
    blank = sum(found.blank for found in texts)
    output_dir = f"runs/{slug(path.stem, 'data')}"
    tasks = task_names(sources)
    parts = RecipeParts(path, output_dir, sources, tasks, encoder, lengths, settings, blank)
    about = "about " if lengths.estimated else ""
    lines += [
        f"encoder: {comment(encoder.name)}: {encoder.why}",
        f"max_length: {settings.max_length}, because 95 % of the texts have at most {about}{lengths.percentile_95} tokens"
        f" (median {about}{lengths.median}, longest {about}{lengths.longest})",
        f"training: about {settings.total_steps:,} steps of {settings.batch_size} rows in three phases",
    ]
    if blank:
        lines.append(f"data.empty_text: skip, because {blank:,} rows have no text")
    return NewRecipe(path, recipe_text(parts), lines)


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
    lines = [f"{files}: {source.rows:,} rows, {len(source.roles)} columns; source {source.name}"]
    lines += [f"  {note}" for note in dict.fromkeys([*(note for one in scans for note in one.notes), *source.notes])]
    width = min(_COLUMN_WIDTH, max(len(comment(name)) for name in source.roles))
    for name, role in source.roles.items():
        shown = comment(name)
        shown = shown if len(shown) <= width else f"{shown[: width - 3]}..."
        what = {"text": "text: ", "label": "label: ", "none": "left out: "}[role.use] + role.why
        if role.use == "label":
            column = source.columns[name]
            missing = f"; {column.missing:,} rows without" if column.missing else ""
            what += f", {len(column.counts or {}):,} classes: {describe_classes(column)}{missing}"
        lines.append(f"  {shown:{width}}  {what}")
        if role.use == "label":
            alike = nearly_equal(source.columns[name].counts or {})
            lines += [f"  {'':{width}}  note: differ only in case or space: {', '.join(map(repr, alike[0]))}"] if alike else []
    if source.shares:
        shares = " and ".join(f"{share:.0%} for {split}" for split, share in source.shares.items())
        lines.append(f"  split: {shares}, because there are no files for these")
    return lines
