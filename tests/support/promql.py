"""PromQL expressions, read without a Prometheus, and the names that they may select."""

import re
from typing import Any

import promql_parser

from benchmarks.lib.places import ROOT

OF_PROMETHEUS = {"up"}
OF_RAY = {
    "ray_node_cpu_count",
    "ray_node_cpu_utilization",
    "ray_node_disk_free",
    "ray_node_disk_usage",
    "ray_node_gpus_utilization",
    "ray_node_gram_available",
    "ray_node_gram_used",
    "ray_node_mem_available",
    "ray_node_mem_total",
    "ray_node_network_receive_speed",
    "ray_node_network_send_speed",
    "ray_object_store_available_memory",
    "ray_object_store_used_memory",
    "ray_serve_autoscaling_target_replicas",
    "ray_serve_deployment_processing_latency_ms",
    "ray_serve_deployment_queued_queries",
    "ray_serve_deployment_replica_healthy",
    "ray_serve_deployment_replica_starts_total",
    "ray_serve_deployment_request_counter_total",
    "ray_serve_deployment_status",
    "ray_serve_replica_processing_queries",
}
OF_HAPROXY = {
    "haproxy_backend_active_servers",
    "haproxy_backend_redispatch_warnings_total",
    "haproxy_backend_response_time_average_seconds",
    "haproxy_backend_retry_warnings_total",
    "haproxy_frontend_bytes_in_total",
    "haproxy_frontend_bytes_out_total",
    "haproxy_frontend_current_sessions",
    "haproxy_frontend_denied_connections_total",
    "haproxy_frontend_http_responses_total",
    "haproxy_frontend_limit_sessions",
}
PART = re.compile(r"_(bucket|count|sum)$")


def selected(expression: str) -> set[str]:
    """Names of the metrics that an expression selects.

    Raises:
        ValueError: it is not PromQL.
    """
    nodes: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), nodes.append)
    return {str(node.name) for node in nodes if isinstance(node, promql_parser.VectorSelector)}


def unknown(expression: str) -> set[str]:
    """Those of them that are neither documented in docs/operate.md, section Metrics, nor known ones of others."""
    known = documented() | OF_PROMETHEUS | OF_RAY | OF_HAPROXY
    return {name for name in selected(expression) if name not in known and PART.sub("", name) not in known}


def documented() -> set[str]:
    """This project's own metrics: the first column of the table in docs/operate.md, section Metrics."""
    _, _, section = (ROOT / "docs" / "operate.md").read_text().partition("\n## Metrics\n")
    cells = re.findall(r"^\| (`ray_[^|]+)\|", section.partition("\n## ")[0], re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
