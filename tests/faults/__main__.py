"""`python -m tests.faults CAMPAIGN`: see campaign.py."""

import sys

from tests.faults import (
    damage,
    disk,
    faulty,
    hanging,
    hostile,
    killing,
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
    "signals": stopping.ASKED_TO_STOP,
    "nonfinite": faulty.NONFINITE,
    "hang": hanging.HANG,
    "flips": faulty.FLIPS,
    "damage": damage.DAMAGE,
    "disk": disk.DISK,
    "quota": disk.QUOTA,
    "hostile": hostile.HOSTILE,
    "rows": rows.ROWS,
    "wandb": tracking.WANDB,
}

if __name__ == "__main__":
    from tests import conftest  # noqa: F401 - the tests' caches, not the user's

    sys.exit(main(CAMPAIGNS, sys.argv[1:]))
