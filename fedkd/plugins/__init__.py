"""Users' own code: how it is found, which hyper-parameters it declares, which versions run it.

Start with `loading`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
