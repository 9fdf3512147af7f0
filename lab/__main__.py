# SPDX-License-Identifier: GPL-3.0-or-later
"""Entry point of `python -m lab`, and of `python /path/to/lab` from any directory."""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:
        # Run by its path: then Python looks for modules in this directory, not beside it.
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from lab.cli import main

    sys.exit(main())
