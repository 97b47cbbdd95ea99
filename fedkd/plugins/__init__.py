"""Users' own code: how it is found, which hyper-parameters it declares, which versions run it.

Start with `loading`.
"""
