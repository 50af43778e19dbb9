"""An operator's mistake is one sentence: the file, the line, the keys, what is wrong, and what to do."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.lib.places import ROOT
from benchmarks.lib.process import free_port
from deployments.encoder.settings import PRELOAD_VARIABLE
from operations.config_file import read_config
from operations.errors import StartError
from operations.launch import check_port

PRODUCTION = (ROOT / "config" / "serve.yaml").read_text()
BOMB = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(9 * ['*' + chr(97 + i)])}]" for i in range(9)]
)


def config_refusal(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StartError) as caught:
        read_config(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


@pytest.mark.parametrize(
    ("right", "wrong", "place", "words"),
    [
        ("proxy_location", "proxy_locatoin", "proxy_locatoin", "did you mean `proxy_location`"),
        ("keep_alive_timeout_s", "keepalive_timeout_s", "http_options.keepalive_timeout_s", "`keep_alive_timeout_s`"),
        ("user_config:", "user_confg:", "[2].user_confg", "did you mean `user_config`"),
        ("min_replicas: 1", "min_replica: 1", "autoscaling_config.min_replica", "`min_replicas`"),
        ("num_cpus: 1", "num_cpu: 1", "ray_actor_options.num_cpu", "`num_cpus`"),
        ("proxy_location: Ev", "grpc_options: {prot: 1}\nproxy_location: Ev", "grpc_options.prot", "`port`"),
        ("    args:", "    runtime_env: {env_var: {}}\n    args:", "runtime_env.env_var", "`env_vars`"),
        ("    args:", "    runtime_env: {env_vars: {A: 1}}\n    args:", "env_vars.A", "text, in quotes"),
        ("    args:", "    logging_config: {log_levl: INFO}\n    args:", "logging_config.log_levl", "`log_level`"),
        ("max_image_batch", "max_imag_batch", "[2].user_config.max_imag_batch", "`max_image_batch`"),
        ("max_image_batch: 64", "max_image_batch: 0", "user_config.max_image_batch", "greater than 0, not 0"),
        ("- name: Ingress", "- user_config: {a: 1}\n        name: Ingress", "user_config", "takes no user_config"),
        ("device: auto", "devise: auto", "args.encoder.devise", "did you mean `device`"),
        ("device: auto", "device: gpu", "args.encoder.device", "'auto', 'cpu' or 'cuda', not 'gpu'"),
        ("preload: []", "model_budget_bytes: 1GB", "model_budget_bytes", "a whole number, not '1GB'"),
        ("preload: []", "preload: [demo/clp]", "encoder.preload[0]", "did you mean `demo/clip`"),
        ("preload: []", "architectures: [/no/such]", "architectures[0]", "no folder /no/such"),
        ("EveryNode", "Everywhere", "proxy_location", "'HeadOnly' or 'EveryNode', not 'Everywhere'"),
        ("min_replicas: 1", "min_replicas: few", "autoscaling_config.min_replicas", "a whole number, not 'few'"),
        ("min_replicas: 1", "min_replicas: 99", "autoscaling_config", "max_replicas (4) must be greater"),
        ("max_replicas: 4", "max_replicas: true", "autoscaling_config.max_replicas", "a number, not true"),
        ("name: Encoder", "name: Encodr", "deployments[2].name", "no deployment `Encodr`; it has Ingress, Prep"),
        ("port: 8881", "port: '8881'", "http_options.port", "from 1 to 65535, without quotes"),
        ("port: 8881", "port: true", "http_options.port", "from 1 to 65535"),
        ("port: 8881", "port: 65536", "http_options.port", "from 1 to 65535"),
        ("port: 8881", "port: 0", "http_options.port", "from 1 to 65535"),
        ("port: 8881", "port: -1", "http_options.port", "from 1 to 65535"),
        ("host: 127.0.0.1", "host: 5", "http_options.host", "must be a string, not 5"),
        ("- name: marqo\n    route", "- route", "applications[0]", "has no name"),
        ("import_path: graph:build_app", "import_path: grpah:build_app", "import_path", "no module `grpah`"),
        ("import_path: graph:build_app", "import_path: graph:build", "import_path", "no `build`"),
        ("import_path: graph:build_app", "import_path: graph:app", "args", "takes no args"),
    ],
)
def test_a_wrong_key_or_value_is_named(path: Path, right: str, wrong: str, place: str, words: str) -> None:
    assert right in PRODUCTION
    text = PRODUCTION.replace(right, wrong, 1)
    message = config_refusal(path, text)
    assert place in message
    assert words in message
    line = int(message.removeprefix(f"{path}:").partition(":")[0])
    assert place.rpartition(".")[2].partition("[")[0] in "".join(text.splitlines()[line - 4 : line + 3])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- 1", "no list `applications`"),
        ("applications: [", "not YAML"),
        ("applications:\n", "no list `applications`"),
        ("applications: []\n", "nothing to serve"),
        ("applications: {marqo: {import_path: 'graph:build_app'}}\n", "begin each application with `- name"),
        ("http_options:\n" + PRODUCTION.replace("http_options", "grpc_options"), "http_options: is empty"),
        ("http_options: {}\n" + PRODUCTION.replace("http_options", "grpc_options"), "http_options: is empty"),
        (PRODUCTION + PRODUCTION[PRODUCTION.index("  - name: marqo") :], "`marqo` is that of applications[0]"),
        (PRODUCTION + "  - {name: b, import_path: 'graph:app'}\n", "`/` is that of applications[0]"),
        ("applications: [{name: marqo}]", "applications[0].import_path: is missing"),
        (PRODUCTION + "proxy_location: EveryNode\n", "the same key is in line 5"),
        (PRODUCTION.encode() + b"# caf\xe9\n", "not UTF-8 (byte 0xe9)"),
        (b"\xff\xfea\x00", "not UTF-8"),
        (BOMB, "more than 20000 values"),
        ("a: &a [*a]", "nested more than 50 deep"),
        ("[" * 2000, "nested too deep"),
        ("a: 2026-99-99", "not YAML"),
        ("a: " + "x" * 2**21, "larger than"),
    ],
)
def test_what_is_no_config_is_one_sentence(path: Path, text: str | bytes, words: str) -> None:
    assert words in config_refusal(path, text)


@pytest.mark.parametrize(
    ("path", "words"), [("/no/such", "No such file"), ("/tmp", "not a file"), ("/dev/zero", "not")]
)
def test_what_is_no_file_is_one_sentence(path: str, words: str) -> None:
    with pytest.raises(StartError, match=words):
        read_config(Path(path))


@pytest.mark.parametrize(
    ("value", "words"), [("[", "not JSON"), ("[5]", "must be a JSON list"), ('["no/such"]', "`no/such`")]
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, value: str, words: str) -> None:
    monkeypatch.setenv(PRELOAD_VARIABLE, value)
    with pytest.raises(StartError, match=words) as caught:
        read_config(ROOT / "config" / "serve.yaml")
    assert PRELOAD_VARIABLE in str(caught.value)


@pytest.mark.parametrize(
    ("host", "words"), [("no.such.host.invalid", "address of this machine"), ("192.0.2.200", "no such address")]
)
def test_a_host_that_is_not_this_machine_says_what_to_set(host: str, words: str) -> None:
    with pytest.raises(StartError, match=words) as caught:
        check_port(host, free_port())
    assert "stop what uses it" not in str(caught.value)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """For a while without the right to listen below 1024, where the tests run as root."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


def test_a_privileged_port_says_what_to_set(unprivileged: None) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 81:
        pytest.skip("no port is privileged here")
    with pytest.raises(StartError, match="below 1024"):
        check_port("127.0.0.1", 81)


def test_connections_that_linger_do_not_keep_a_port() -> None:
    """A server that was killed under load leaves them behind."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()  # the side that closes first lingers
            client.recv(1)
    check_port("127.0.0.1", port)
