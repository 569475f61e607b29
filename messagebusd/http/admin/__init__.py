"""The admin page (SPEC 1): what an administrator sees of a daemon, and may do, in a browser.

``door.py`` has its routes, ``sessions.py`` says who is logged in, ``history.py`` keeps the numbers
that it draws. ``static/`` is the page itself: plain modules for the browser, nothing to build.
"""
