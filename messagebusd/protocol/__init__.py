"""Floor 0: what MessageBus means, as values and functions.

Nothing here waits, logs, reads settings or knows a driver. SPEC 2 and 3.1 are the rules.
"""
