# SPDX-License-Identifier: GPL-3.0-or-later
"""Half an hour of a GPU: ``pack`` carries the host to a machine without a network, ``parts`` is what runs there."""
