"""Several processes that serve as one daemon (``server.workers``).

``supervisor.py`` is the process that was started: it binds, starts the others, watches them,
replaces those that die, and has them drain. ``processes.py`` is what it has of each of them,
``worker.py`` what each of them runs, ``assignment.py`` what the two tell each other.
"""
