"""``messagebusd shadow``: do we answer real polls as the Ruby library does?

To be asked before the switch. nginx mirrors polls to here and answers them as before; nobody waits
for us. Each is answered at once with nothing, then both servers are asked the same, without waiting
(``dlp=t``), and their answers compared. ``compare`` is values and functions, ``tally`` counts,
``mirror`` asks.
"""
