"""``python -m crucible_train.tracking``: send, sync, export and look at what trackers have of runs."""

import sys

from crucible_train.tracking.command import main

if __name__ == "__main__":
    sys.exit(main())
