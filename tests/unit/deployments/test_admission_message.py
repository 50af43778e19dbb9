"""What a refused request is told: what is held, what it wanted in addition, and the limit that applied to it."""

import pytest

from deployments.ingress.admission import Admission, of_items
from embedding.errors import RequestError


@pytest.mark.parametrize(
    ("held", "asked", "told"),
    [
        (1700, 129, "busy with 1700 contents and takes no more than 1792 when a request adds 129;"),
        (2000, 128, "busy with 2000 contents and takes no more than 2048 when a request adds 128;"),
    ],
    ids=["large", "small"],
)
def test_a_refusal_names_the_limit_that_applied(held: int, asked: int, told: str) -> None:
    """The reserve for small requests makes it smaller than the setting."""
    admission = of_items(2048, "contents", 128)
    with admission.share() as others, admission.share() as share:
        others.change(held)
        with pytest.raises(RequestError) as refused:
            share.add(asked)
        assert told in refused.value.message
        assert share.held == 0


def test_a_share_that_grows_names_what_it_adds() -> None:
    admission = Admission(640, "bytes", spare=64, small=8)
    with admission.share() as others, admission.share() as share:
        others.add(400)
        share.add(100)
        with pytest.raises(RequestError, match="busy with 500 bytes and takes no more than 576 when a request adds"):
            share.add(100)
