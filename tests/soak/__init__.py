"""A soak: mixed load and faults for minutes or hours, and a strict account of what came of it.

``python -m tests.soak --help``, or ``make soak``. docs/soak.md says what it does and what it holds
the daemon to. A short form is a test like any other (``test_soak.py``).

``ledger`` knows who must see what; ``browsers``, ``followers`` and ``publishers`` are the load,
``world`` the servers, ``faults`` what is done to them, ``samples`` what the daemons take, and
``verdict`` the judgement. ``run`` puts them together.
"""
