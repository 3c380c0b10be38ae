"""``python -m warploom.core.cli``, for environments whose scripts are not on PATH."""

import sys

from warploom.core.cli import main

if __name__ == "__main__":
    sys.exit(main())
