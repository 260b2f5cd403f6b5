from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mtl_dist.data.preparation import fill_cache
from tests.utils.tiny import tiny_recipe, tiny_tokenizer


def test_rows_of_a_set_leave_disk_and_memory_as_soon_as_they_are_tokenized(tmp_path: Path) -> None:
    """A file that is mapped cannot be removed from a folder on NFS, and all sets' rows at once can fill a disk."""
    cache = tmp_path / "cache"
    found = []

    @contextmanager
    def progress(label: str, unit: str, total: int | None) -> Iterator[Callable[[int], None]]:
        # A file that is removed and mapped is still listed, as deleted.
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{cache}/.writing-" in line]
        found.append((label.partition(":")[0], len(list(cache.glob(".writing-*/*.arrow"))), len(mapped)))
        yield lambda more: None

    recipe = tiny_recipe(tmp_path, f"data.cache_dir={cache}")
    fill_cache(recipe, tiny_tokenizer(), progress)
    assert found == [*[("tasks.topic", 6, 6)] * 3, *[("tasks.mood", 3, 3)] * 3]
    assert not list(cache.glob(".writing-*"))
