"""The sources and tasks of a new recipe: which columns of a group of files are its text and its labels."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mtl_dist.errors import UserError, did_you_mean
from mtl_dist.inspection.column_profile import ColumnProfile
from mtl_dist.inspection.column_roles import Role, choose_texts, is_fractional, kind_of, role_of
from mtl_dist.inspection.table_groups import Group
from mtl_dist.inspection.table_scan import Scan, merged

_LISTED = 10


@dataclass
class SourcePlan:
    """One source of a new recipe."""

    name: str
    group: Group
    columns: dict[str, ColumnProfile]
    """Statistics of the columns of the training files, by name."""
    roles: dict[str, Role]
    """Uses of all columns of the training files, in their order."""
    text: list[str]
    labels: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of the training files."""
        return sum(one.rows for one in self.group.splits["train"])

    @property
    def shares(self) -> dict[str, float]:
        """Splits that are to be taken from the training rows, and their shares."""
        return {split: share for split, share in (("validation", 0.1), ("test", 0.2)) if split not in self.group.splits}


def plan_sources(groups: Sequence[Group], text: Sequence[str], labels: Sequence[str]) -> list[SourcePlan]:
    """Sources with the columns `text` and `labels` where they have them, else with the columns that look like these.

    Raises UserError for columns that no source has, and for a source without text or labels.
    """
    known = {name: None for group in groups for one in group.splits["train"] for name in one.columns}
    for option, names in (("--text", text), ("--label", labels)):
        for name in names:
            if name not in known:
                raise UserError(f"{option}: no column {name!r}{did_you_mean(name, known)}")
    if len(text) > 2:
        raise UserError(f"--text: {len(text)} columns; give one, or two for a pair")
    if both := set(text) & set(labels):
        raise UserError(f"--label: {min(both)!r} is given as text too")
    plans: list[SourcePlan] = []
    for group in groups:
        plan = _plan(group, text, labels)
        plan.name = _unique(slug(group.name, "data"), [one.name for one in plans])
        plans.append(plan)
    return plans


def task_names(plans: Sequence[SourcePlan]) -> list[tuple[str, SourcePlan, str]]:
    """Name, source and label column of each task; the source's name is part of it where another has this column too."""
    columns = [(plan, label) for plan in plans for label in plan.labels]
    found: list[tuple[str, SourcePlan, str]] = []
    for plan, label in columns:
        name = slug(label, "task")
        if sum(slug(other, "task") == name for _, other in columns) > 1 and len(plans) > 1:
            name = f"{plan.name}_{name}"
        # A source and a task with other rows must not share a name.
        taken = [*(one[0] for one in found), *(other.name for other in plans if other is not plan)]
        found.append((_unique(name, taken), plan, label))
    return found


def slug(name: str, otherwise: str) -> str:
    """A name as sources and tasks have, of ASCII letters, digits, _ and -; `otherwise` is for names without letters."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    found = re.sub(r"[^A-Za-z0-9_-]+", "_", plain).strip("_-")
    return f"{otherwise}_{found}" if found.isdigit() else found or otherwise


def _unique(name: str, taken: Sequence[str]) -> str:
    number, found = 2, name
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found


def _plan(group: Group, text: Sequence[str], labels: Sequence[str]) -> SourcePlan:
    columns = merged(group.splits["train"])
    roles = {name: role_of(column) for name, column in columns.items()}
    for one in group.splits["train"]:
        roles |= {name: Role("none", f"not single values ({why})") for name, why in one.unreadable.items()}
    own_text = [name for name in text if name in columns]
    own_labels = [name for name in labels if name in columns]
    for name in own_labels:
        _check_label(columns[name])
    candidates = [name for name, role in roles.items() if role.use == "text" and name not in own_labels]
    chosen = own_text or choose_texts(columns, candidates)
    found = own_labels or [name for name, role in roles.items() if role.use == "label" and name not in chosen]
    _set_roles(roles, columns, chosen, found)
    path = group.splits["train"][0].table.path
    if not chosen:
        raise UserError(f"{path}: no column looks like a text: {_listed(roles)}; name it: --text COLUMN")
    if not found:
        raise UserError(f"{path}: no column looks like a label: {_listed(roles)}; name it: --label COLUMN")
    plan = SourcePlan("", group, columns, roles, chosen, found)
    _leave_out_splits(plan)
    return plan


def _check_label(column: ColumnProfile) -> None:
    """Raises UserError for a column that cannot be a label."""
    if is_fractional(column):
        raise UserError(f"--label: {column.name!r} holds numbers with fractions; classes are strings or whole numbers")
    if column.counts is None:
        raise UserError(f"--label: {column.name!r} has more different values than a task can have classes")
    if len(column.counts) < 2:
        raise UserError(f"--label: {column.name!r} has {len(column.counts)} value; a task has at least two classes")


def _set_roles(
    roles: dict[str, Role], columns: Mapping[str, ColumnProfile], text: Sequence[str], labels: Sequence[str]
) -> None:
    """Changes the roles of columns that are used otherwise than they look."""
    for name, role in list(roles.items()):
        if name in text:
            roles[name] = role if role.use == "text" else Role("text", "given by --text")
        elif name in labels:
            roles[name] = role if role.use == "label" else Role("label", kind_of(columns[name]))
        elif role.use == "text":
            roles[name] = Role(
                "none", f"another text; text: [{', '.join([*text, name][:2])}] would read both as a pair"
            )
        elif role.use == "label":
            roles[name] = Role("none", "not among those given by --label")


def _listed(roles: Mapping[str, Role]) -> str:
    """Columns and what they were taken for, in one line."""
    shown = [
        f"{name} ({role.use}: {role.why})" if role.use != "none" else f"{name} ({role.why})"
        for name, role in list(roles.items())[:_LISTED]
    ]
    more = len(roles) - len(shown)
    return " ".join((", ".join(shown) + (f" and {more} more" if more else "")).split())


def _leave_out_splits(plan: SourcePlan) -> None:
    """Leaves out files of validation and test that lack a column, such as test files without labels."""
    for split in ("validation", "test"):
        for one in plan.group.splits.get(split, []):
            missing = [name for name in (*plan.text, *plan.labels) if not _has(one, name)]
            if missing:
                plan.notes.append(f"{one.table.path}: left out, because it has no values in the column {missing[0]!r}")
                del plan.group.splits[split]
                break


def _has(one: Scan, name: str) -> bool:
    return name in one.columns and one.columns[name].present > 0
