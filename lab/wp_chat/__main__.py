# SPDX-License-Identifier: GPL-3.0-or-later
"""The builder of the index: `python -m lab.wp_chat`, and `python /path/to/lab/wp_chat` from any directory."""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:
        # Run by its path: then Python looks for modules in this directory, not beside the package.
        sys.path[0] = str(Path(__file__).resolve().parents[2])
    from lab.wp_chat.build_index import main

    sys.exit(main(sys.argv[1:]))
