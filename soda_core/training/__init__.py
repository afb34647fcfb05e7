# SPDX-License-Identifier: GPL-3.0-or-later
"""Training an adapter: losses, schedule, trainable layers, the loop. Knows no host."""
