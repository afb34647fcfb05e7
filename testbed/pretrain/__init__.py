# SPDX-License-Identifier: GPL-3.0-or-later
"""Trains the demo's base model: autoencoder and classifier on from the shipped ones, the model from nothing.

Only needed to make ``demo/model/`` anew; see its README for what was run. ``python dev.py pretrain`` runs it, part by
part, and goes on where it was stopped.
"""
