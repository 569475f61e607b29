"""How hard to try properties."""

from __future__ import annotations

from hypothesis import settings


def examples(times: int) -> settings:
    """So many times the profile's examples, for what goes wrong seldom."""
    return settings(max_examples=times * settings().max_examples)
