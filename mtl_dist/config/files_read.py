"""Files and folders that a run of a recipe reads, and the check that the run does not move or replace them."""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_dist.config.recipe import Recipe
from mtl_dist.environment import CACHE_VARIABLE, expand_home
from mtl_dist.errors import UserError
from mtl_dist.run_files import OwnFiles
from mtl_dist.run_layout import RECIPE, SETUP

Read = tuple[str, Path]
"""A key or file of recipes, for messages, and what is read for it."""


def check_run_folder(recipe: Recipe, files: Sequence[str] = ()) -> None:
    """Raises UserError if what the run reads is among what a run writes in `output_dir`, and moves aside there.

    `files` are those that the recipe was read from. Only the recipe of an earlier run, in the folder of that run, may
    be one of them: it is written again with the same content.
    """
    folder = Path(recipe.output_dir)
    own = OwnFiles(folder)
    for file in files:
        name = own.name_of(Path(file))
        if name == RECIPE and not (folder / SETUP).exists():
            raise UserError(
                f"output_dir: a run writes its own {RECIPE} to {folder}, over {file}, which it reads;"
                " rename the recipe, or name another folder"
            )
        if name not in (None, RECIPE):
            raise _conflict(f"--config {file}", name, folder)
    for key, path in paths_read(recipe):
        if (name := own.name_of(path)) is not None:
            raise _conflict(f"{key}: {path}", name, folder)


def paths_read(recipe: Recipe) -> Iterator[Read]:
    """Encoder, caches and data files of `recipe`, as far as they are on this machine."""
    encoder = Path(recipe.model.encoder)
    if encoder.exists():
        yield "model.encoder", encoder
        # Links to files elsewhere, as the cache of the hub has them.
        yield from (("model.encoder", path) for path in encoder.glob("*") if path.is_symlink())
    for key, folder in (
        ("data.cache_dir", recipe.data.cache_dir),
        (CACHE_VARIABLE, None if recipe.data.cache_dir else os.environ.get(CACHE_VARIABLE)),
        ("cache.folder", recipe.cache.folder),
    ):
        if folder:
            yield key, Path(expand_home(key, folder))
    yield from data_paths(recipe.model_dump())


def data_paths(recipe: Mapping[str, Any]) -> Iterator[Read]:
    """Data files and folders of the tasks and sources in plain containers, with globs expanded."""
    for section in ("sources", "tasks"):
        for name, table in (recipe.get(section) or {}).items():
            key = f"{section}.{name}"
            if (path := table.get("path")) and Path(path).exists():
                yield f"{key}.path", Path(path)
            for word in _words(table.get("data_files")):
                word = expand_home(f"{key}.data_files", word)
                for found in {word, *glob.glob(word, recursive=True)}:  # noqa: PTH207 - as `datasets` reads globs
                    yield f"{key}.data_files", Path(found)


def _words(files: Any) -> Iterator[str]:
    """The strings in a string, a list or a mapping of either."""
    if isinstance(files, str):
        yield files
    elif files:
        for item in files.values() if isinstance(files, Mapping) else files:
            yield from _words(item)


def _conflict(what: str, name: str | None, folder: Path) -> UserError:
    return UserError(
        f"{what} is {name} of the run folder {folder}, or in it, which a run writes there and moves aside;"
        " name another output_dir"
    )
