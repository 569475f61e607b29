"""Filters: conditions of the operator's that may withhold a message (SPEC 6).

A filter concerns the channels that begin with its prefix. Every filter that concerns a message must
allow it; one that fails withholds, because a broken filter must not become a leak.

``expressions`` is what a condition in the configuration file is, ``chain`` asks all filters.
"""
