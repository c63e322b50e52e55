"""Ports that nobody listens on."""

import socket

__all__ = ["free_port"]


def free_port() -> int:
    """Of 127.0.0.1, free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
