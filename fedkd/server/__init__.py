"""The server's work: knowledge in, guidance out, and the models it trains itself. No messages, no engine."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
