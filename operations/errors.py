"""The error for a server that cannot be started."""


class StartError(Exception):
    """The server cannot be started; the message is one sentence for the operator."""
