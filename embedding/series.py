"""All that is measured: the instruments of `embedding.meter`, and the values that their tags may have."""

from enum import StrEnum

from embedding.errors import ErrorKind, Fault
from embedding.meter import Counter, Gauge, Histogram


class Lane(StrEnum):
    """What work is done for."""

    IMAGE = "image"
    TEXT = "text"
    ANY = "any"
    """Loading a model, for whatever it is used."""


class Modality(StrEnum):
    """Of a request."""

    IMAGE = "image"
    LANGUAGE = "language"


class Outcome(StrEnum):
    """Of a request."""

    OK = "ok"
    """Each item got an answer: vectors or an error."""
    REFUSED = "refused"
    """The client's doing, or too much at a time."""
    FAILED = "failed"
    """The server's doing: out of time, a lost replica, an unexpected error."""
    CANCELLED = "cancelled"
    """The client has hung up."""


class ItemOutcome(StrEnum):
    """Of an item."""

    VECTOR = "vector"
    ERROR = "error"


class Stage(StrEnum):
    """Where time goes."""

    DOWNLOAD_WAIT = "download_wait"
    DOWNLOAD = "download"
    DECODE_WAIT = "decode_wait"
    DECODE = "decode"
    DEVICE_WAIT = "device_wait"
    FORWARD = "forward"
    LOAD_WAIT = "load_wait"
    LOAD = "load"


class ErrorStage(StrEnum):
    """Where an item or a request failed."""

    DOWNLOAD = "download"
    DECODE = "decode"
    LOAD = "load"
    FORWARD = "forward"
    TEXT = "text"
    INGRESS = "ingress"


class Waiting(StrEnum):
    """What waits for what."""

    DOWNLOAD = "download"
    DECODER = "decoder"
    DEVICE_IMAGE = "device_image"
    DEVICE_TEXT = "device_text"
    LOAD = "load"


class Workers(StrEnum):
    """What works."""

    DECODER = "decoder"
    DEVICE = "device"
    INGRESS = "ingress"
    """Its workers are processes, of one core each."""


SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
ITEMS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)

REQUESTS = Counter("marqo_requests", "Requests for vectors", {"modality": Modality, "outcome": Outcome})
REQUEST_SECONDS = Histogram("marqo_request_seconds", "Duration of a request", {"modality": Modality}, SECONDS)
ITEM_COUNT = Counter("marqo_items", "Items of requests", {"modality": Modality, "outcome": ItemOutcome})
MODEL_REQUESTS = Counter("marqo_model_requests", "Requests that got an answer, by model", {"model": None})
REFUSED = Counter("marqo_refused", "Requests that were refused or failed", {"reason": Fault})
ERRORS = Counter("marqo_errors", "Errors of items and models", {"stage": ErrorStage, "kind": ErrorKind})
STAGE_SECONDS = Histogram("marqo_stage_seconds", "Time in a stage", {"stage": Stage, "lane": Lane}, SECONDS)
WAITING = Gauge("marqo_waiting", "What waits", {"what": Waiting})
BUSY_SECONDS = Counter("marqo_busy_seconds", "Time of all workers together in which they worked", {"what": Workers})
WORKERS = Gauge("marqo_workers", "Workers", {"what": Workers})
BATCH_ITEMS = Histogram("marqo_batch_items", "Items in one forward pass", {"lane": Lane}, ITEMS)
DOWNLOAD_BYTES = Counter("marqo_download_bytes", "Bytes of answers that were downloaded")
DOWNLOADS_ACTIVE = Gauge("marqo_downloads_active", "Transfers now")
HOSTS_LIMITED = Gauge("marqo_hosts_limited", "Hosts that get fewer transfers at a time than allowed")
BREAKERS_OPEN = Gauge("marqo_breakers_open", "Hosts that are left alone")
MODEL_BYTES = Gauge("marqo_model_bytes", "Memory of a loaded model", {"model": None})
MODEL_LOADS = Counter("marqo_model_loads", "Loads of a model", {"model": None})
MODEL_EVICTIONS = Counter("marqo_model_evictions", "Evictions of a model", {"model": None})
