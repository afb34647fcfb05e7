# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured. Each module here is one benchmark: ``python dev.py bench NAME``."""
