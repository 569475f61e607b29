"""How fast are the stores, and several workers? ``python -m bench.stores``.

Real Redis and PostgreSQL servers are started for it, as the tests start theirs. Publishing is
compared with the Ruby library's own way to do it, on the same servers in the same round.
"""
