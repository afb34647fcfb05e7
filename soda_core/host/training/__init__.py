# SPDX-License-Identifier: GPL-3.0-or-later
"""Training in the graph: a MODEL and pictures in, an adapter out."""

from .run import RunOptions, TrainingData, TrainingResult, train_in_graph

__all__ = ["RunOptions", "TrainingData", "TrainingResult", "train_in_graph"]
