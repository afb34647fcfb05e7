# SPDX-License-Identifier: GPL-3.0-or-later
"""Trains the demo's base model from nothing: pictures of ``testbed.world``, an autoencoder, a UNet, and a classifier.

Only needed to make ``demo/model/`` anew; see its README for what was run. Every script resumes from its own state.

    python -m testbed.pretrain.autoencoder
    python -m testbed.pretrain.unet
    python -m testbed.pretrain.classifier
    python -m testbed.pretrain.export
"""
