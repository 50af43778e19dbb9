"""From contents to vectors: the plain library under the graph. It never imports Ray."""

__version__ = "0.1.0"
