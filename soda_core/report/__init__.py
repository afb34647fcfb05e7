# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person looks at: drawings and texts of an adapter, a training, a merge. Knows no host."""
