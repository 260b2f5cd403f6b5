"""`python -m tests.faults CAMPAIGN`: see campaign.py."""

import sys

from tests.faults.campaign import Campaign, main
from tests.faults.damage import DAMAGE
from tests.faults.disk import DISK
from tests.faults.hostile import HOSTILE

CAMPAIGNS: dict[str, Campaign] = {"damage": DAMAGE, "hostile": HOSTILE, "disk": DISK}

if __name__ == "__main__":
    sys.exit(main(CAMPAIGNS, sys.argv[1:]))
