"""The command that shows rows as a model will see them: ``python -m crucible_train.renderers.show FILE``.

It reads rows, which renderers know nothing of, so it is written above them; this is its address.
"""

import sys

from crucible_train.stages.show import main

if __name__ == "__main__":
    sys.exit(main())
