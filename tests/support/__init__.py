"""What several test packages share: a daemon as a subprocess, and HTTP down to the bytes."""
