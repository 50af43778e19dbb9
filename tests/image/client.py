"""A client in the network of a container, with an image host beside it.

    python -m tests.image.client texts | held

`texts` prints a vector. `held` sends a picture whose download waits, prints `in flight` once it does, and lets it end
when it reads a line; then it prints what the request has got. Errors end it with a traceback.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.photo import jpeg, photo
from tests.support.marqo_client import MarqoClient

URL = "http://127.0.0.1:8881"
LONG_TIMEOUT = {"downloadTimeoutMs": 60_000}


def texts() -> None:
    (vector,) = MarqoClient(URL).embed(["a red circle"])
    print("a red circle", vector.dtype, vector.shape, vector[:3])


def held() -> None:
    client = MarqoClient(URL)
    with ImageHost({"a.jpg": jpeg(photo(1, 200, 150))}) as host, ThreadPoolExecutor(1) as pool:
        request = pool.submit(client.embed, [host.url("/held/a.jpg")], "image", preprocessing=LONG_TIMEOUT)
        assert host.wait_for("in_flight", 1)
        print("in flight", flush=True)
        sys.stdin.readline()
        assert not request.done()
        host.release()
        print(request.result().shape)


if __name__ == "__main__":
    {"texts": texts, "held": held}[sys.argv[1]]()
