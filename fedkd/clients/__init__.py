"""A participant: its model, what leaves it, what can be wrong with it. No messages, no engine."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
