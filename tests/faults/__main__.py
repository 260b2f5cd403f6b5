"""`python -m tests.faults CAMPAIGN`: see campaign.py."""

import sys

from tests.faults import faulty, hanging, killing, stopping
from tests.faults.campaign import Campaign, main

CAMPAIGNS: dict[str, Campaign] = {
    "kill": killing.KILL,
    "thirty_kills": killing.THIRTY_KILLS,
    "repeat": killing.REPEAT,
    "signals": stopping.ASKED_TO_STOP,
    "nonfinite": faulty.NONFINITE,
    "hang": hanging.HANG,
    "flips": faulty.FLIPS,
}

if __name__ == "__main__":
    from tests import conftest  # noqa: F401 - the tests' caches, not the user's

    sys.exit(main(CAMPAIGNS, sys.argv[1:]))
