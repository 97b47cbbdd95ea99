from .client import TrainedClient as TrainedClient
from .client import load_client as load_client
from .exporter import Export as Export
from .exporter import export as export
