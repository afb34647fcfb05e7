# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m soda_core``: the command ``soda``."""

import sys

from .cli import main

sys.exit(main())
