"""Differences between runs: distinct names, and keys whose values differ."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_dist.report.records import RunRecord


def run_names(runs: Sequence[RunRecord]) -> list[str]:
    """Returns folder names; where two are equal, with as many parent folders as make them distinct."""
    paths = [run.folder.resolve().parts for run in runs]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate((run.name for run in runs), 1)]


def merged_keys(mappings: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns the keys of all mappings, each once; a key that only some have comes after its predecessor there."""
    keys: list[str] = []
    for mapping in mappings:
        place = 0
        for one in mapping:
            if one in keys:
                place = keys.index(one) + 1
            else:
                keys.insert(place, one)
                place += 1
    return keys


def flattened(value: Any, prefix: str = "") -> dict[str, str]:
    """Returns dotted keys with values as text.

    Mappings in a list get keys such as `phases[0].name`; an empty mapping has no key.
    """
    if isinstance(value, Mapping):
        pairs = [(f"{prefix}.{name}" if prefix else str(name), item) for name, item in value.items()]
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        pairs = [(f"{prefix}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {prefix: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
    return {key: text for name, item in pairs for key, text in flattened(item, name).items()}


def environment_of(run: RunRecord) -> dict[str, str]:
    """Returns versions, processes and digests of a run by the name that the page shows."""
    start = run.starts[-1] if run.starts else {}
    kept = ("engine", "world_size", "mixed_precision", "device")
    found = {key: str(start[key]) for key in kept if key in start}
    found |= {f"version of {name}": str(version) for name, version in start.get("versions", {}).items()}
    digests = run.summary.get("digests") or run.setup.get("digests") or {}
    if "params_sha256" in run.summary:
        digests = {**digests, "final parameters": run.summary["params_sha256"]}
    # Enough characters to tell two apart; the page of one run has the whole digest.
    found |= {f"digest of the {name}": str(digest)[:16] for name, digest in digests.items()}
    return found
