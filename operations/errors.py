"""What keeps a server from starting."""


class StartError(Exception):
    """The server cannot be started; the message is one sentence for the operator."""
