"""Watches the Ray and Serve of a launcher, notices when they have ended, and stops them within a limited time."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from operations.haproxy.drain import drain

CHECK_S = 0.5
DRAIN_S = 20.0
"""The longest that a stop waits for requests in flight; calls by Python handles get as long from Serve."""
STOP_TIMEOUT_S = 40.0
SHUTDOWN_S = 5.0
"""For the rest of a stop after Ray has ended."""
VITAL_PROCESSES = {"gcs_server": "Ray's control service (gcs_server)", "raylet": "Ray's node (raylet)"}


@contextlib.contextmanager
def watched(on_loss: Callable[[str], None]) -> Iterator[None]:
    """Within the context `on_loss` is called with a sentence, from a thread, when Ray or Serve has ended.

    This process must be connected to Ray. Serve may start later: its controller counts as ended only after it has been
    seen. A controller that Ray restarts keeps its name and does not count as ended.
    """
    done = threading.Event()
    lock = threading.Lock()

    def report(reason: str) -> None:
        with lock:
            if not done.is_set():
                done.set()
                on_loss(reason)

    # Two threads: without Ray's control service the check of the controller never returns.
    for check in (_ended_process, _ControllerCheck().missing):
        threading.Thread(target=_repeat, args=(check, report, done), name="watch", daemon=True).start()
    try:
        yield
    finally:
        with lock:
            done.set()


def _repeat(check: Callable[[], str | None], report: Callable[[str], None], done: threading.Event) -> None:
    while not done.wait(CHECK_S):
        if (reason := check()) is not None:
            report(reason)


def _ended_process() -> str | None:
    from deployments.ray_internals import dead_processes

    for kind, process in dead_processes():
        if kind in VITAL_PROCESSES:
            what, how = VITAL_PROCESSES[kind], _how(process.returncode)
            return f"{what} has ended under the running server ({how}); start it again"
    return None


def _how(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


class _ControllerCheck:
    def __init__(self) -> None:
        self._seen = False

    def missing(self) -> str | None:
        from deployments.ray_internals import serve_controller

        try:
            there = serve_controller() is not None
        except Exception:  # a failure of Ray itself, which the other check reports
            return None
        if self._seen and not there:
            return "Serve's controller has ended: Serve was shut down or killed; start the server again"
        self._seen = self._seen or there
        return None


def stop(timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Takes no new connections, waits for the requests in flight, and stops Serve and then Ray. Returns whether it was
    done in time."""
    deadline = time.monotonic() + timeout_s
    stopping = threading.Thread(target=_stop, args=(deadline,), name="stop", daemon=True)
    stopping.start()
    while stopping.is_alive() and time.monotonic() < deadline:
        stopping.join(CHECK_S)
        if _ended_process() is not None:
            # Ray is being shut down, or was killed (systemd ends all processes of a group): then Serve never answers.
            stopping.join(SHUTDOWN_S)
            break
    return not stopping.is_alive()


def _stop(deadline: float) -> None:
    import ray

    if ray.is_initialized():
        _drain()
        with contextlib.suppress(Exception):  # the caller ends the processes that remain
            _stop_serve(deadline)
        ray.shutdown()


def _drain() -> None:
    import ray

    from deployments.ray_internals import haproxy_socket

    with contextlib.suppress(OSError):  # there is no HAProxy (any more)
        if lost := drain(haproxy_socket(ray.get_runtime_context().get_node_id()), DRAIN_S):
            print(f"{lost} requests were not answered within {DRAIN_S:.0f} s and are lost", flush=True)


def _stop_serve(deadline: float) -> None:
    """Stops Serve without `serve.shutdown`: that waits for an answer that never comes, since the controller ends first,
    and Ray reports a failed task that it repeats for ever."""
    import ray

    from deployments.ray_internals import close_handles, disconnect_serve, serve_controller

    close_handles()
    if (controller := serve_controller()) is not None:
        ray.get(controller.graceful_shutdown.remote(wait=False), timeout=deadline - time.monotonic())
        while serve_controller() is not None and time.monotonic() < deadline:
            time.sleep(0.1)
    disconnect_serve()
