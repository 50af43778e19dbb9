"""Rows about what this server runs on: Serve's replicas, the machines (Ray's metrics), and HAProxy's own page."""

from operations.grafana.panels import APP, NODE, RATE, Panel, Query, Row, total

REPLICAS = Row(
    "Do replicas run?",
    (
        Panel(
            "State",
            "short",
            (
                Query(
                    f"max by (application, deployment) (ray_serve_deployment_status{{{APP}}})",
                    "{{deployment}}",
                ),
            ),
            "Serve's own word.",
            stat=True,
            red=("below", 3),
            names=(
                (1, "deploy failed"),
                (2, "unhealthy"),
                (3, "updating"),
                (4, "upscaling"),
                (5, "downscaling"),
                (6, "healthy"),
            ),
        ),
        Panel(
            "Replicas",
            "short",
            (
                Query(total("ray_serve_deployment_replica_healthy", "deployment"), "{{deployment}}"),
                Query(
                    f"max by (deployment) (ray_serve_autoscaling_target_replicas{{{APP}}})",
                    "{{deployment}}, wanted",
                ),
            ),
            "Healthy ones, and as many as autoscaling wants. A gap that stays: no free CPU or GPU, or a failing start.",
        ),
        Panel(
            "Calls at work",
            "short",
            (Query(total("ray_serve_replica_processing_queries", "deployment"), "{{deployment}}"),),
            "Requests at ingresses, chunks at preprocessors and encoders. Autoscaling follows them.",
        ),
        Panel(
            "Calls that wait for a replica",
            "short",
            (Query(total("ray_serve_deployment_queued_queries", "deployment"), "{{deployment}}"),),
            "All replicas have as many calls as they take (max_ongoing_requests).",
        ),
        Panel(
            "Starts of replicas",
            "short",
            (Query(total("ray_serve_deployment_replica_starts_total", "deployment"), "{{deployment}}"),),
            "Since the nodes were started. Steps without an update or growth: replicas die.",
        ),
    ),
)

MACHINES = Row(
    "Are the machines well?",
    (
        Panel(
            "CPU",
            "percent",
            (Query(f"ray_node_cpu_utilization{{{NODE}}}", "{{instance}}"),),
            "Of all cores of the machine.",
            most=100,
        ),
        Panel(
            "Memory",
            "percentunit",
            (Query(f"1 - ray_node_mem_available{{{NODE}}} / ray_node_mem_total", "{{instance}}"),),
            "At 95 % Ray kills replicas.",
            most=1,
            red=("from", 0.9),
        ),
        Panel(
            "Object store",
            "bytes",
            (
                Query(f"sum by (instance) (ray_object_store_used_memory{{{NODE}}})", "{{instance}} used"),
                Query(f"sum by (instance) (ray_object_store_available_memory{{{NODE}}})", "{{instance}} free"),
            ),
            "Pixels on their way from preprocessors to encoders, in /dev/shm.",
        ),
        Panel(
            "Network",
            "Bps",
            (
                Query(f"ray_node_network_receive_speed{{{NODE}}}", "{{instance}} in"),
                Query(f"ray_node_network_send_speed{{{NODE}}}", "{{instance}} out"),
            ),
            "Of all interfaces.",
        ),
        Panel(
            "Root disk",
            "percentunit",
            (
                Query(
                    f"ray_node_disk_usage{{{NODE}}} / (ray_node_disk_usage + ray_node_disk_free)",
                    "{{instance}}",
                ),
            ),
            "Part in use. In a pod Ray does not look.",
            most=1,
            red=("from", 0.95),
        ),
        Panel(
            "GPU",
            "percent",
            (Query(f"ray_node_gpus_utilization{{{NODE}}}", "{{instance}} {{GpuIndex}}"),),
            "Part of the time in which a kernel runs.",
            most=100,
        ),
        Panel(
            "GPU memory",
            "mbytes",
            (
                Query(f"ray_node_gram_used{{{NODE}}}", "{{instance}} {{GpuIndex}} used"),
                Query(f"ray_node_gram_available{{{NODE}}}", "{{instance}} {{GpuIndex}} free"),
            ),
            "Of all programs on the device.",
        ),
    ),
)

FRONT_DOOR = Row(
    "What does HAProxy see?",
    (
        Panel(
            "Answers by status",
            "reqps",
            (
                Query(
                    f'sum by (code) (rate(haproxy_frontend_http_responses_total{{proxy="http_frontend"}}[{RATE}]))',
                    "{{code}}",
                ),
            ),
            "All routes, answers of HAProxy itself included.",
            stacked=True,
        ),
        Panel(
            "Connections",
            "short",
            (
                Query('sum by (instance) (haproxy_frontend_current_sessions{proxy="http_frontend"})', "{{instance}}"),
                Query('max(haproxy_frontend_limit_sessions{proxy="http_frontend"})', "limit of each"),
            ),
            "Of clients. Beyond the limit, and beyond half of it for one address, they are closed.",
        ),
        Panel(
            "Bytes",
            "Bps",
            (
                Query(f'sum(rate(haproxy_frontend_bytes_in_total{{proxy="http_frontend"}}[{RATE}]))', "in"),
                Query(f'sum(rate(haproxy_frontend_bytes_out_total{{proxy="http_frontend"}}[{RATE}]))', "out"),
            ),
            "Requests and answers.",
        ),
        Panel(
            "Ingresses that answer",
            "short",
            (
                Query(
                    'max by (instance, proxy) (haproxy_backend_active_servers{proxy=~"http-.+"})',
                    "{{instance}} {{proxy}}",
                ),
            ),
            "By HAProxy's own checks, for each node.",
        ),
        Panel(
            "Requests sent again",
            "suffix:/s",
            (
                Query(
                    f'sum(rate(haproxy_backend_retry_warnings_total{{proxy=~"http-.+"}}[{RATE}]))',
                    "to the same ingress",
                ),
                Query(
                    f'sum(rate(haproxy_backend_redispatch_warnings_total{{proxy=~"http-.+"}}[{RATE}]))',
                    "to another one",
                ),
            ),
            "Their ingress was lost before it answered.",
        ),
        Panel(
            "Time to an answer",
            "s",
            (
                Query(
                    'max by (instance) (haproxy_backend_response_time_average_seconds{proxy=~"http-.+"})',
                    "{{instance}}",
                ),
            ),
            "Mean of the last 1024 requests of all routes.",
        ),
    ),
)

PLATFORM_ROWS = (REPLICAS, MACHINES, FRONT_DOOR)
