"""The id of a request in every line that a replica logs while it works for it.

It is Serve's own id, which travels with each call of a handle, so that its lines and ours agree. Serve itself writes it
only where there is an access log, which preprocessors and encoders do not have.
"""

import logging

from deployments.ray_internals import request_id

_logger = logging.getLogger("ray.serve")


class _RequestIds(logging.Filter):
    """Gives each record the id of the request in whose context it is logged; drops none."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request_id") and (request := request_id()):
            record.request_id = request
        return True


def log_request_ids() -> None:
    """Has all lines of this process carry the id of their request; a second call changes nothing."""
    if not any(isinstance(one, _RequestIds) for one in _logger.filters):
        _logger.addFilter(_RequestIds())
