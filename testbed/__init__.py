# SPDX-License-Identifier: GPL-3.0-or-later
"""What demo, benchmarks and tests share: a world of pictures, base models, a headless ComfyUI, methods to compare with.

Nothing of it ships to users, and it imports neither the demo nor the benchmarks.
"""
