"""What happens when things break: real servers, a proxy that misbehaves, and a strict account.

``traffic.py`` is the account: publishers that do not give up and subscribers that come back, as the
real ones do. Each fault ends in the same sentence: every accepted message reached every entitled
poll exactly once, in order. ``docs/guarantees.md`` names the test behind each promise.
"""
