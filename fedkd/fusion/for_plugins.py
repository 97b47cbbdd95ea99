"""Parts of other rooms that a strategy of your own uses."""

from fedkd.plugins import hyperparameters as hyperparameters
from fedkd.training import kd_kl as kd_kl
