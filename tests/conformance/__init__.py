"""Recorded examples of the subscriber protocol, replayed against a running daemon.

The data is not part of the repository. It is looked for in the folder that the environment
variable ``MESSAGEBUSD_CONFORMANCE`` names, else in ``../shared/conformance`` beside the checkout;
its README describes the format and how to compare.

``scenarios``    reads the files
``target``       the seam: a fresh bus with a scenario's settings; here, a messagebusd process
``replay``       does a scenario's steps and notes what happened
``comparing``    holds that against what was recorded
``differences``  where this daemon answers otherwise on purpose, with the row of the specification
"""
