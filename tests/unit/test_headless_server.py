"""Ports that are taken, and by whom."""
import http.server
import os
import re
import socket
import threading

import pytest

from portrait_atelier.headless import AtelierError
from portrait_atelier.headless.server import free_port, listener, require_free

linux = pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="only Linux tells")


@linux
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_listener_is_found(address):
    with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET) as mine:
        port = mine.getsockname()[1]
        process, name = listener(port)
        assert process == os.getpid() and name
    assert listener(port) is None


@linux
def test_another_program_at_the_port_is_named():
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        told = rf"port {web.server_port} of 127.0.0.1 is taken by .+, process {os.getpid()}: end it, or .* --port$"
        with pytest.raises(AtelierError, match=told):
            require_free(web.server_port)
    finally:
        web.shutdown()
        web.server_close()


def test_one_that_nothing_is_known_of(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as mine:
        port = mine.getsockname()[1]
        threading.Thread(target=lambda: mine.accept()[0].close(), daemon=True).start()
        monkeypatch.setattr("portrait_atelier.headless.server.listener", lambda port: None)
        with pytest.raises(AtelierError, match=re.escape("taken by another program: end it")):
            require_free(port)


def test_free_and_impossible_ports():
    require_free(free_port())
    with pytest.raises(AtelierError, match="port 70000 of 127.0.0.1 cannot be used: .*; choose another with --port"):
        require_free(70000)
