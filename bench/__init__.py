"""How fast is it, and what does a parked poll take? ``python -m bench``, or ``make bench``.

The daemon runs on one core and the load generator on another. Two other servers go through the same
work, because absolute figures say little on a machine that is shared or unknown: one written the
textbook way on aiohttp, and one that writes to its sockets and does nothing else. ``make
bench-peers`` compares with what people run instead.
"""
