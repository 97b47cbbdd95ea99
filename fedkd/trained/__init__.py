"""A run's trained clients, in this process and as plain files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, [], {"client": ["TrainedClient", "load_client"], "exporter": ["Export", "export"]}
)
