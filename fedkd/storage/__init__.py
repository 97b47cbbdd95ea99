"""Files and their names: JSON, digests, whole or absent writes, arrays without pickle.

Start with `atomic`: every file of a run is written through it.
"""
