"""`python -m tests.faults CAMPAIGN`: see campaign.py."""

import sys

from tests.faults import killing, ranks, rows, saving, tracking, worlds
from tests.faults.campaign import Campaign, main

CAMPAIGNS: dict[str, Campaign] = {
    "kill": killing.KILL,
    "kill_rank": ranks.KILL_RANK,
    "kill_in_save": saving.KILL_IN_SAVE,
    "world_sizes": worlds.WORLD_SIZES,
    "thirty_kills": killing.THIRTY_KILLS,
    "repeat": killing.REPEAT,
    "rows": rows.ROWS,
    "wandb": tracking.WANDB,
}

if __name__ == "__main__":
    from tests import conftest  # noqa: F401 - the tests' caches, not the user's

    sys.exit(main(CAMPAIGNS, sys.argv[1:]))
