"""Where client work runs: Flower grids over Ray actors, and in this process."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
