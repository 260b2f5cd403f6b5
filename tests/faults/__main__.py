"""`python -m tests.faults CAMPAIGN`: see campaign.py."""

import sys

from tests.faults.campaign import Campaign, main

CAMPAIGNS: dict[str, Campaign] = {}

if __name__ == "__main__":
    sys.exit(main(CAMPAIGNS, sys.argv[1:]))
