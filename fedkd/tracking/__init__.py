"""What a run leaves behind and what the user sees of it: recorded metrics, live progress, loggers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
