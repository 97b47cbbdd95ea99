"""Parts of other packages that custom learners use."""

from fedkd.plugins import hyperparameters as hyperparameters
