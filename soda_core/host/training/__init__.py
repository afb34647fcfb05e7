# SPDX-License-Identifier: GPL-3.0-or-later
"""Training in the graph: a MODEL and pictures in, an adapter out."""

from .options import RunOptions
from .run import TrainingData, TrainingResult, train_in_graph

__all__ = ["RunOptions", "TrainingData", "TrainingResult", "train_in_graph"]
