"""``python -m warploom.core.cli``, for environments whose scripts are not on PATH."""

import sys

from warploom.core.cli import main

sys.exit(main())
