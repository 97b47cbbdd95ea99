"""Messages between server and clients, and the gates that check them.

Start with `records`, the layout of every message.
"""
