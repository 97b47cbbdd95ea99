"""Fusion: clients' knowledge in, guidance out. Read `strategy` first, then one method such as `fedmd`.

A method is one file of one frozen dataclass, named as in the literature. `capabilities` says what a strategy
needs and can, `views` what it may use of a client and of the server. `registry` knows all by name.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
