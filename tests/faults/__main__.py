"""Command line `python -m tests.faults CAMPAIGN`, described in campaign.py."""

import sys

from tests.faults import (
    corruption,
    disk,
    hanging,
    hostile,
    killing,
    numeric,
    ranks,
    rows,
    saving,
    stopping,
    tracking,
    worlds,
)
from tests.faults.campaign import Campaign, main

CAMPAIGNS: dict[str, Campaign] = {
    "kill": killing.KILL,
    "kill_rank": ranks.KILL_RANK,
    "kill_in_save": saving.KILL_IN_SAVE,
    "thirty_kills": killing.THIRTY_KILLS,
    "repeat": killing.REPEAT,
    "world_sizes": worlds.WORLD_SIZES,
    "signals": stopping.STOP_SIGNALS,
    "nonfinite": numeric.NONFINITE,
    "hang": hanging.HANG,
    "flips": numeric.FLIPS,
    "damage": corruption.CORRUPTION,
    "disk": disk.DISK,
    "quota": disk.QUOTA,
    "hostile": hostile.HOSTILE,
    "rows": rows.ROWS,
    "wandb": tracking.WANDB,
}

if __name__ == "__main__":
    from tests import conftest  # noqa: F401 - use the tests' caches, not the user's

    sys.exit(main(CAMPAIGNS, sys.argv[1:]))
