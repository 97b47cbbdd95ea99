"""Parts of other rooms that a learner of your own uses."""

from fedkd.plugins import hyperparameters as hyperparameters
