"""Recipes as runs of this version and of earlier ones wrote them, into run folders and checkpoints."""

from collections.abc import Mapping
from typing import Any

from mtl_dist.config.data_recipe import SPLITS
from mtl_dist.config.fields import expanded, filled
from mtl_dist.config.recipe import RENAMED_KEYS, Recipe


def todays_form(recipe: Any) -> Any:
    """The content of a recipe that a run wrote, under today's keys and in today's form.

    Keys that did not exist then stay absent. Whatever is no mapping is returned unchanged.
    """
    if not isinstance(recipe, Mapping):
        return recipe
    form: dict[str, Any] = expanded(dict(recipe), Recipe)
    for old, new in RENAMED_KEYS.items():
        section, _, key = old.rpartition(".")
        values = form.get(section)
        if isinstance(values, dict) and key in values:
            renamed = {new.rpartition(".")[2] if name == key else name: value for name, value in values.items()}
            form = {**form, section: renamed}
    tasks = form.get("tasks")
    if not isinstance(tasks, dict):
        return form
    return {**form, "tasks": {name: _read_splits_only(task) for name, task in tasks.items()}}


def differing_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Dotted keys of two recipes, as runs wrote them, that have different values; sorted.

    A key that one of them lacks has its default there.
    """
    old, new = todays_form(before), todays_form(now)
    written = flattened(old).keys() | flattened(new).keys()
    old, new = (flattened({**form, **_with_defaults(form)}) for form in (old, new))
    return sorted(key for key in written if old.get(key) != new.get(key))


def flattened(form: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a recipe in today's form with their values; the classes of a task are one value, as pairs."""
    flat: dict[str, Any] = {}
    for name, item in form.items():
        key = f"{prefix}{name}"
        if not isinstance(item, Mapping):
            flat[key] = item
        elif prefix.startswith("tasks.") and name == "labels":
            flat[key] = list(item.items())  # their order is that of the classes
        else:
            flat |= flattened(item, f"{key}.")
    return flat


def _read_splits_only(task: Any) -> Any:
    """A task without the files that earlier versions accepted for splits of other names, and never read."""
    if not isinstance(task, dict) or not isinstance(task.get("data_files"), dict):
        return task
    return {**task, "data_files": {split: files for split, files in task["data_files"].items() if split in SPLITS}}


def _with_defaults(form: dict[str, Any]) -> dict[str, Any]:
    """A recipe in today's form with all keys; the text columns of a task are those that it reads."""
    full = filled(form, Recipe)
    match full:
        case {"tasks": dict() as tasks, "sources": dict() as sources}:
            return {**full, "tasks": {name: _with_text(task, sources) for name, task in tasks.items()}}
    return full


def _with_text(task: Any, sources: Mapping[str, Any]) -> Any:
    match task:
        case {"text": None, "source": None}:
            return {**task, "text": ["text"]}
        case {"text": None, "source": str() as source} if isinstance(sources.get(source), dict):
            return {**task, "text": sources[source]["text"]}
    return task
