"""Entry point of ``python3 tools/dev``. This file alone must also parse on the Pythons that it turns away."""

import sys

if sys.version_info < (3, 10):
    sys.exit(
        "Warploom needs Python 3.10 or later; %s is Python %d.%d.\n"
        "Run this with a newer one, for example: python3.12 tools/dev ..."
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )

from cli import main

sys.exit(main())
