"""Files and their names: JSON, digests, whole or absent writes, arrays without pickle.

Start with `atomic`: every file of a run is written through it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
