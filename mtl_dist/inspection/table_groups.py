"""Which files are splits or shards of one table, by their names and columns."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtl_dist.config.sources import uncompressed_name
from mtl_dist.errors import UserError
from mtl_dist.inspection.table_scan import Scan

_SPLIT = re.compile(
    r"(?i)(?:^|(?<=[._\-\s]))(?:(train|training)|(validation|valid|val|dev)|(test|testing))(?=$|[._\-\s])"
)
_SHARD = re.compile(r"[._\-]?\d+[._\-]of[._\-]\d+$")


@dataclass
class Group:
    """Files of one source, by the split that they hold."""

    name: str
    """What the names of its files have in common; may be empty."""
    splits: dict[str, list[Scan]] = field(default_factory=dict)

    @property
    def scans(self) -> list[Scan]:
        """Files of all splits."""
        return [one for scans in self.splits.values() for one in scans]


def stem(path: str) -> str:
    """Name of a file without the endings of its format and compression."""
    return uncompressed_name(path).stem


def split_of(path: str) -> tuple[str, str | None]:
    """The rest of a file's name, and the split that the name tells, or None."""
    name = _SHARD.sub("", stem(path))
    found = list(_SPLIT.finditer(name))
    if len(found) != 1:
        return name, None
    match = found[0]
    split = ("train", "validation", "test")[(match.lastindex or 1) - 1]
    rest = f"{name[: match.start()].rstrip('._- ')} {name[match.end() :].lstrip('._- ')}".strip()
    return rest.replace(" ", "_"), split


def group_files(scans: Sequence[Scan]) -> tuple[list[Group], list[str]]:
    """The sources that files make, in the order of their first files, and a line for each decision.

    Files whose names say that they are splits of one name belong together; so do files with equal columns whose names
    differ in digits only, as shards. Raises UserError for splits without training files, and for files of one split
    that are read differently.
    """
    groups: dict[tuple[str, ...], Group] = {}
    for one in scans:
        rest, split = split_of(one.table.path)
        folder = str(Path(one.table.path).parent)
        if split is not None and len(scans) > 1:
            key = ("split", folder, rest)
        else:
            rest, split = stem(one.table.path), "train"
            key = ("file", folder, re.sub(r"\d+", "#", _SHARD.sub("", rest)), *sorted(one.columns))
        group = groups.setdefault(key, Group(rest or Path(folder).name or "data"))
        group.splits.setdefault(split, []).append(one)
    found = list(groups.values())
    for group in found:
        _check(group)
    return found, [*_decisions(found), *_alike(found)]


def _check(group: Group) -> None:
    if "train" not in group.splits:
        one = group.scans[0].table.path
        raise UserError(f"{one}: is no training file by its name, and there is none that goes with it; give one too")
    first = group.splits["train"][0]
    for other in group.scans[1:]:
        if (other.table.format, other.table.read) != (first.table.format, first.table.read):
            raise UserError(
                f"{other.table.path}: is written in another way than {first.table.path}, with which it would make one"
                " table; write both in the same format, encoding and delimiter"
            )


def _decisions(groups: Sequence[Group]) -> list[str]:
    lines = []
    for group in groups:
        for split, scans in group.splits.items():
            names = ", ".join(one.table.path for one in scans)
            if len(scans) > 1:
                lines.append(f"{names}: parts of one table ({split}), because their columns and names agree")
            elif len(group.splits) > 1:
                lines.append(f"{names}: the {split} split, by its name")
    return lines


def _alike(groups: Sequence[Group]) -> list[str]:
    """A line for each group that has the columns of an earlier one."""
    lines = []
    for index, group in enumerate(groups):
        same = next((one for one in groups[:index] if set(one.scans[0].columns) == set(group.scans[0].columns)), None)
        if same is not None:
            first, other = same.scans[0].table.path, group.scans[0].table.path
            lines.append(
                f"{other}: has the columns of {first} and another name, so it is a source of its own; to make them one"
                " table, list both files in one data_files"
            )
    return lines
