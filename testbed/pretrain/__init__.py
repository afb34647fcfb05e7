# SPDX-License-Identifier: GPL-3.0-or-later
"""Trains the demo's base model, on from what is shipped: pictures of the world, autoencoder, classifier, model.

Only needed to make ``demo/model/`` anew; see its README for what was run. ``python dev.py pretrain`` runs it, part by
part, and goes on where it was stopped.
"""
