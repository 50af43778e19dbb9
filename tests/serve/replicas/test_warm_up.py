"""An ingress opens its connections before anybody asks."""

from tests.support.replicas import Replicated


def test_an_ingress_goes_through_the_graph_before_anybody_asks(replicated: Replicated) -> None:
    """One picture to a preprocessor and on to an encoder, which opens the connections; no model is loaded for it."""
    assert replicated.first_calls == {"Preprocessor": 1, "Encoder": 1}
