"""Downloads an S3 object to the disk. Needs boto3, from this package's extra `s3`."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from embedding.models.files.failure import invalid, unloadable
from embedding.models.files.options import LoadOptions
from embedding.models.files.pace import Pace, TooSlow, Watchdog
from embedding.models.files.progress import Progress

# Only plain names: botocore also accepts ARNs, which refer to other services and hosts.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def s3_label(bucket: str, key: str) -> str:
    """The object's URL, for messages. Together with `endpoint()` it identifies the object."""
    return f"s3://{bucket}/{key}"


def endpoint() -> str:
    """The S3-compatible service that the environment names; "" is Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def download_object(
    bucket: str,
    key: str,
    credentials: Mapping[str, str] | None,
    path: Path,
    options: LoadOptions,
    check_free_space: Callable[[int], None],
) -> None:
    """Writes an object to `path`, which does not exist yet. Blocks.

    Args:
        bucket: its name.
        key: of the object.
        credentials: a request's `aws_access_key_id`, `aws_secret_access_key` and perhaps `aws_session_token`. None is
            those of the environment; if it has none either, the request is unsigned, which public buckets allow.
        path: where the bytes go as they arrive.
        options: limits.
        check_free_space: called with the object's size; raises RequestError if the disk lacks space for it.

    Raises:
        RequestError: REFUSED, with the reason, never with credentials.
        OSError: the disk is full or cannot be written.
    """
    if not _BUCKET.fullmatch(bucket):
        raise invalid("the Bucket of modelLocation is not a bucket's name")
    with _errors_of(s3_label(bucket, key)):
        reply = _client(credentials, options).get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        _save(reply, s3_label(bucket, key), path, options, check_free_space)


def check_access(bucket: str, key: str, credentials: Mapping[str, str] | None, options: LoadOptions) -> None:
    """Asks S3 whether these credentials may have an object. Blocks.

    Raises:
        RequestError: REFUSED, as `download_object`.
    """
    if not _BUCKET.fullmatch(bucket):
        raise invalid("the Bucket of modelLocation is not a bucket's name")
    with _errors_of(s3_label(bucket, key)):
        _client(credentials, options).head_object(Bucket=bucket, Key=key)


@contextmanager
def _errors_of(label: str) -> Iterator[None]:
    """Converts errors of boto3 to RequestErrors."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
    except ImportError:
        raise unloadable("boto3 is not installed here; install this package's extra `s3`") from None
    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = error.response.get("Error", {}).get("Code")
        raise unloadable(f"downloading {label} failed: S3 answered {status} ({code})") from None
    except ParamValidationError:
        raise unloadable(f"downloading {label} failed: that is no valid bucket and key") from None
    except TooSlow as error:
        raise unloadable(f"downloading {label} failed: {error}") from None
    except BotoCoreError as error:
        # Only the type: the messages contain endpoints, and possibly more that is confidential.
        raise unloadable(f"downloading {label} failed: {type(error).__name__}") from None


def _client(credentials: Mapping[str, str] | None, options: LoadOptions) -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    # At level DEBUG it logs each request with its headers: name of the key, session token, signature.
    library = logging.getLogger("botocore")
    library.setLevel(max(library.level, logging.INFO))
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    given = {name: credentials[name] for name in names if credentials.get(name)} if credentials else {}
    # A new session: boto3's default session is not thread-safe, and would keep credentials.
    session = boto3.session.Session(**given)
    config: dict[str, Any] = {
        "connect_timeout": options.connect_timeout_s,
        "read_timeout": options.read_timeout_s,
        "retries": {"max_attempts": 2, "mode": "standard"},
        "proxies": {},  # none, as for other downloads; None would use those of the environment
    }
    if options.s3_dual_stack and not endpoint():
        config["s3"] = {"use_dualstack_endpoint": True}
    if session.get_credentials() is None:
        config["signature_version"] = UNSIGNED
    return session.client("s3", config=Config(**config))


def _save(reply: Any, label: str, path: Path, options: LoadOptions, check_free_space: Callable[[int], None]) -> None:
    total = int(reply["ContentLength"])
    limit = options.max_checkpoint_bytes
    with closing(reply["Body"]) as body:
        if limit and total > limit:
            raise unloadable(f"downloading {label} failed: it has {total} bytes, and max_checkpoint_bytes is {limit}")
        check_free_space(total)
        progress = Progress(label, total)
        pace = Pace(options)
        with Watchdog(pace, lambda: _shut_down(body)) as watchdog:
            try:
                with path.open("xb") as file:
                    # At the end botocore checks the size, and the checksum if the object has one.
                    for chunk in body.iter_chunks(pace.step_bytes):
                        file.write(chunk)
                        progress.advance(len(chunk))
                        pace.advance(len(chunk))
            except Exception:
                if watchdog.too_slow:
                    raise pace.error() from None
                raise
    progress.finish()


def _shut_down(body: Any) -> None:
    """Ends the wait of a thread that reads from the connection. botocore has no public function for that."""
    body._raw_stream.shutdown()
