"""What a run leaves to be used: its clients' trained models, in this process and as plain files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
