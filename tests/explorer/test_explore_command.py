"""`ppe-npu explore`: impossible requests end in one line before a model is read, and no page is opened."""

from __future__ import annotations

import os
import socket
import sys
from types import SimpleNamespace

import pytest
from command_line import refused

from ppe_npu.cli.explore import _listening
from ppe_npu.errors import InputError
from ppe_npu.explorer import page
from ppe_npu.explorer.groups import LEFT_BEHIND, found_model


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Gradio appears to be installed; there is no model here, and reading one or opening a page fails the test."""
    monkeypatch.setattr("ppe_npu.cli.explore.optional", lambda *_: None)
    monkeypatch.setattr("ppe_npu.cli.common.checkpoint", lambda *_: pytest.fail("a model was looked at"))
    monkeypatch.setattr("ppe_npu.explorer.page.serve", lambda *_: pytest.fail("a page was opened"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("host", [" ", "192.0.2.1", "http://127.0.0.1", "127.0.0.1:80", "a" * 300, "a..b", "\udcff"])
def test_a_host_that_is_not_this_machines_is_said_before_a_model_is_read(run, alone, monkeypatch, host):
    known = socket.getaddrinfo

    def looked_up(name, *args, **options):
        return known(name, *args, **options, flags=socket.AI_NUMERICHOST)  # no network is asked for names

    monkeypatch.setattr("socket.getaddrinfo", looked_up)
    refused(run("explore", "--device", "cpu", "--model", "m", "--host", host), "--host '", "cannot be listened on (")


def test_a_port_that_is_taken_is_said_before_a_model_is_read(run, alone):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = f"--port {port} cannot be listened on (Address already in use): name another"
        refused(run("explore", "--device", "cpu", "--model", "m", "--port", port), words)
    assert _listening("127.0.0.1", port) == _listening("", port) == "127.0.0.1"
    for port in (0, -1, 65536, 10**30):
        refused(run("explore", "--device", "cpu", "--port", port), f"--port {port} is not a port")


def test_an_address_of_ipv6_has_brackets():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert [_listening(host, None) for host in ("::1", "[::1]")] == ["[::1]"] * 2


def test_what_is_of_a_model_needs_one(run, alone):
    for asked in (("--base", "gone"), ("--dtype", "bf16")):
        refused(run("explore", "--device", "cpu", *asked), "--base and --dtype need a model, and none was named")


def test_a_model_that_may_not_be_looked_at_was_not_found(tmp_path, monkeypatch):
    (tmp_path / LEFT_BEHIND[0]).mkdir(parents=True)
    (tmp_path / LEFT_BEHIND[0] / "config.json").write_text("{}")
    assert found_model(tmp_path) == tmp_path / LEFT_BEHIND[0]

    def refusing(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.stat", refusing)
    assert found_model(tmp_path) is None


@pytest.mark.parametrize("before", [None, "example.org"])
def test_a_proxy_is_not_asked_for_the_page(monkeypatch, before):
    """Gradio checks that its page is up, and would ask the proxy that the environment names."""
    seen = []

    def launch(**options):
        seen.append((options["server_name"], os.environ["no_proxy"]))
        raise OSError("no port is left")

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
        monkeypatch.delenv(name)
    if before:
        monkeypatch.setenv("NO_PROXY", before)
    themes, blocks = SimpleNamespace(Base=lambda **_: None), SimpleNamespace(launch=launch)
    monkeypatch.setattr(page, "build", lambda *_: SimpleNamespace(queue=lambda: blocks))
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace(themes=themes))
    monkeypatch.setitem(sys.modules, "starlette", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "starlette.middleware", SimpleNamespace(Middleware=lambda *_: None))
    said = r"the page cannot be served at \[::1\] \(no port is left\): name another --port"
    with pytest.raises(InputError, match=said):
        page.serve(None, "", "[::1]", None)
    assert seen == [("[::1]", f"{before},localhost,::1" if before else "localhost,::1")]
