"""Row pools for samplers in tests."""

from collections.abc import Mapping

import numpy as np

from mtl_dist.schedule.sampler import Pool


def pools_of_tasks(lengths: Mapping[str, np.ndarray]) -> list[Pool]:
    """One pool for each task, all of its rows with labels; `lengths` of the rows by task."""
    return [Pool(task, of_task, {index: None}) for index, (task, of_task) in enumerate(lengths.items())]
