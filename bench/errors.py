"""What goes wrong while measuring."""


class BenchError(Exception):
    """A server did something that makes the figures meaningless: nothing is reported."""
