from .partition import write_app as write_app
from .partition import write_partition as write_partition
