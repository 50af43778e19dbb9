"""A real S3 API (moto's server), and an environment that points to it and holds no credentials."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

ADMIN = {"region_name": "us-east-1", "aws_access_key_id": "admin", "aws_secret_access_key": "admin"}


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address, port = server.get_host_and_port()
    yield f"http://{address}:{port}"
    server.stop()


@pytest.fixture
def s3_client(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With all rights, unlike what the environment gives to the code under test."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    return boto3.client("s3", **ADMIN)


@pytest.fixture
def key(s3_client: Any, s3_server: str) -> Iterator[dict[str, str]]:
    """The key of a user with the right to read; while it lasts, the server checks keys,
    and refuses requests without one."""
    iam = boto3.client("iam", endpoint_url=s3_server, **ADMIN)
    user = f"reader-{uuid.uuid4().hex}"
    iam.create_user(UserName=user)
    may = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:HeadObject", "s3:ListBucket"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [may]})
    iam.put_user_policy(UserName=user, PolicyName="read", PolicyDocument=policy)
    made = iam.create_access_key(UserName=user)["AccessKey"]
    requests.post(f"{s3_server}/moto-api/reset-auth", data=b"0", timeout=5)
    yield {"aws_access_key_id": made["AccessKeyId"], "aws_secret_access_key": made["SecretAccessKey"]}
    requests.post(f"{s3_server}/moto-api/reset-auth", data=b"inf", timeout=5)


@pytest.fixture
def bucket(s3_client: Any) -> str:
    """Named `models`, with nothing in it that is not of this test."""
    s3_client.create_bucket(Bucket="models")
    return "models"
