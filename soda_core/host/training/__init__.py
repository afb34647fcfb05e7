# SPDX-License-Identifier: GPL-3.0-or-later
"""Training in the graph: a MODEL and pictures in, an adapter out.

``session`` holds the model to train in, ``objective`` the loss of a batch, ``run`` what a node does with both.
"""

from .dataset import TrainingData
from .notices import graph_notices, tell
from .options import Notice, RunOptions
from .run import TrainingResult, train_in_graph

__all__ = ["Notice", "RunOptions", "TrainingData", "TrainingResult", "graph_notices", "tell", "train_in_graph"]
