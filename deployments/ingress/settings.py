"""Settings of the ingress: chunk sizes, limits and timeouts."""

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from deployments.replica import Settings
from embedding.text.chunks import MAX_EXPANDED_BYTES


class IngressSettings(Settings):
    """Chunk sizes, limits and timeouts of the HTTP ingress.

    Args:
        image_chunk: pictures in one chunk; small chunks spread over more replicas, large ones cost fewer calls.
        text_chunk: texts in one chunk.
        max_contents: items in one request.
        max_body_bytes: bytes of one request's body.
        max_text_chars: characters of one text; a longer one gets an error of its own.
        max_items_in_flight: items that one replica works on at a time; requests beyond that get a 503 at once. Divided
            by the items that the graph embeds in a second, it is the longest time that a request waits. An eighth is
            reserved for small requests.
        max_searches_in_flight: the same for the items of searches, which are counted separately, so that indexing does
            not block them.
        max_downloads_in_flight: items of either kind that only wait for downloads and are not worked on. Waiting items
            beyond that are counted as work.
        max_bytes_in_flight: bytes of all request bodies, counted as they arrive. Incomplete bodies may hold half of it,
            and an eighth is reserved for small ones.
        max_expanded_bytes: bytes that one request needs: keys, prefixed texts, chunks, vectors and reply, counted
            before they are made. Beyond that it gets a 413, or an item that is split into chunks an error of its own.
        max_expanded_bytes_in_flight: the same for all requests together; an eighth is reserved for small ones.
        min_body_bytes_per_s: a body that arrives more slowly is given up with a 408; if a reply is read more slowly its
            connection is closed.
        body_grace_s: seconds over which that rate is measured, in one period after the other.
        request_timeout_s: after this time a request is given up with a 503. Incomplete downloads are given up a little
            earlier, each with an error of its own.
        health_timeout_s: how long `/healthz` waits for an answer of a replica before it says that the graph cannot
            embed.
    """

    image_chunk: PositiveInt = 32
    text_chunk: PositiveInt = 128
    max_contents: PositiveInt = 16_384
    max_body_bytes: PositiveInt = 256 * 2**20
    max_text_chars: PositiveInt = 1_000_000
    # One Marqo container sends eight requests of 128 items at a time, and does not repeat a refused one: two containers
    # fit. On two CPU cores that is ten seconds of work.
    max_items_in_flight: PositiveInt = 2048
    max_searches_in_flight: PositiveInt = 512
    max_downloads_in_flight: NonNegativeInt = 16_384
    max_bytes_in_flight: PositiveInt = 512 * 2**20
    # 16,384 items of 1024 dimensions need 134 MiB.
    max_expanded_bytes: PositiveInt = MAX_EXPANDED_BYTES
    max_expanded_bytes_in_flight: PositiveInt = 2**30
    min_body_bytes_per_s: PositiveFloat = 10_000.0
    body_grace_s: PositiveFloat = 5.0
    request_timeout_s: PositiveFloat = 290.0
    health_timeout_s: PositiveFloat = 5.0
