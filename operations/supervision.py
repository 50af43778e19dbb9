"""Ray and Serve under a running launcher: noticing that they have ended, and ending them within a bounded time."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

CHECK_S = 0.5
STOP_TIMEOUT_S = 40.0
"""Serve gives the requests of a replica twenty seconds to finish."""
SHUTDOWN_S = 5.0
VITAL = {"gcs_server": "Ray's control service (gcs_server)", "raylet": "Ray's node (raylet)"}


@contextlib.contextmanager
def watched(on_loss: Callable[[str], None]) -> Iterator[None]:
    """Within the context `on_loss` is called, from a thread, with a sentence, when Ray or Serve is gone for good.

    Ray must be connected. Serve may start later: its controller is missed only after it has been seen. One that Ray
    restarts keeps its name all the while.
    """
    done = threading.Event()
    lock = threading.Lock()

    def report(reason: str) -> None:
        with lock:
            if not done.is_set():
                done.set()
                on_loss(reason)

    # Two threads: where Ray's control service is gone, asking it for the controller never returns.
    for look in (_ended_process, _ControllerLooks().missing):
        threading.Thread(target=_look, args=(look, report, done), name="watch", daemon=True).start()
    try:
        yield
    finally:
        with lock:
            done.set()


def _look(look: Callable[[], str | None], report: Callable[[str], None], done: threading.Event) -> None:
    while not done.wait(CHECK_S):
        if (reason := look()) is not None:
            report(reason)


def _ended_process() -> str | None:
    from deployments.ray_internals import dead_processes

    for kind, process in dead_processes():
        if kind in VITAL:
            return f"{VITAL[kind]} has ended under the running server ({_how(process.returncode)}); start it again"
    return None


def _how(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


class _ControllerLooks:
    def __init__(self) -> None:
        self._seen = False

    def missing(self) -> str | None:
        from deployments.ray_internals import serve_controller

        try:
            there = serve_controller() is not None
        except Exception:  # Ray's own trouble, which is for the other look to judge
            return None
        if self._seen and not there:
            return "Serve's controller is gone: somebody has shut Serve down or killed it; start the server again"
        self._seen = self._seen or there
        return None


def stop(timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Stops Serve and then Ray, with requests in flight answered; whether that was done in time."""
    deadline = time.monotonic() + timeout_s
    stopping = threading.Thread(target=_stop, args=(deadline,), name="stop", daemon=True)
    stopping.start()
    while stopping.is_alive() and time.monotonic() < deadline:
        stopping.join(CHECK_S)
        if _ended_process() is not None:
            # Ray is being shut down, or somebody has ended it, as systemd does with a group: then Serve never answers.
            stopping.join(SHUTDOWN_S)
            break
    return not stopping.is_alive()


def _stop(deadline: float) -> None:
    import ray

    if ray.is_initialized():
        with contextlib.suppress(Exception):  # what cannot be stopped is ended by whoever called
            _stop_serve(deadline)
        ray.shutdown()


def _stop_serve(deadline: float) -> None:
    """Not `serve.shutdown`: it waits for an answer that never comes, since the controller ends first, and Ray reports
    that as a failed task that it will try again for ever."""
    import ray

    from deployments.ray_internals import close_handles, disconnect_serve, serve_controller

    close_handles()
    if (controller := serve_controller()) is not None:
        ray.get(controller.graceful_shutdown.remote(wait=False), timeout=deadline - time.monotonic())
        while serve_controller() is not None and time.monotonic() < deadline:
            time.sleep(0.1)
    disconnect_serve()
