# SPDX-License-Identifier: GPL-3.0-or-later
"""Trains the demo's base model from nothing: pictures of ``demo.world``, an autoencoder, a UNet, and a judge.

Only needed to make ``demo/model/`` anew; see its README for what was run. Every script resumes from its own state.

    python -m demo.pretrain.autoencoder
    python -m demo.pretrain.unet
    python -m demo.pretrain.judge
    python -m demo.pretrain.export
"""
