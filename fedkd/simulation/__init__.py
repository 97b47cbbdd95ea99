"""Simulations from start to results: `runner` starts them, `results` reads them, `check` looks ahead."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
