"""A real federation: every client is a node with its own data."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, [], {"partition": ["write_app", "write_partition"]}
)
