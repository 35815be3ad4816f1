"""The websocket client against a socket that sends exact bytes."""
import base64
import hashlib
import socket
import threading

import pytest

from portrait_atelier.headless.websocket import GUID, WebSocket


class Peer:
    """The server's side of one connection: it answers the handshake, then does what the test says."""

    def __init__(self, answer=None):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/ws?clientId=a"
        self.answer = answer
        self.thread = threading.Thread(target=self.shake, daemon=True)
        self.thread.start()

    def shake(self):
        self.socket = self.listener.accept()[0]
        self.socket.settimeout(10)
        self.request = b""
        while b"\r\n\r\n" not in self.request:
            self.request += self.socket.recv(4096)
        key = self.request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0].decode()
        accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
        answer = self.answer or f"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {accept}\r\n\r\n"
        self.socket.sendall(answer.encode())

    def close(self):
        self.thread.join()
        self.socket.close()
        self.listener.close()


@pytest.fixture
def peer():
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def connection(peer):
    connection = WebSocket(peer.url, timeout=0.2)
    peer.thread.join()
    yield connection
    connection.close()


def frame(opcode, payload, final=True):
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big") if size < 65536 else b"\x7f" + size.to_bytes(8, "big")
    return bytes([128 * final | opcode]) + length + payload


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 300_000])
def test_every_length_field(peer, connection, size):
    sender = threading.Thread(target=peer.socket.sendall, args=(frame(2, b"x" * size) + frame(1, b"end"),))
    sender.start()
    assert connection.receive() == b"x" * size
    assert connection.receive() == "end"
    sender.join()


def test_the_request_asks_for_the_path_and_the_query(peer, connection):
    assert peer.request.startswith(b"GET /ws?clientId=a HTTP/1.1\r\n")


def test_text_is_str_and_binary_is_bytes(peer, connection):
    peer.socket.sendall(frame(1, "größe".encode()) + frame(2, b"\x00\x01"))
    assert (connection.receive(), connection.receive()) == ("größe", b"\x00\x01")


def test_a_timeout_in_the_middle_of_a_frame_loses_nothing(peer, connection):
    data = frame(1, b"slowly" * 50)
    for part in (data[:1], data[1:3], data[3:40]):
        peer.socket.sendall(part)
        with pytest.raises(TimeoutError):
            connection.receive()
    peer.socket.sendall(data[40:])
    assert connection.receive() == "slowly" * 50


def test_fragments_are_joined_and_a_ping_between_them_is_answered(peer, connection):
    peer.socket.sendall(frame(1, b"one ", final=False) + frame(9, b"here?") + frame(0, b"two ", final=False) + frame(0, b"three"))
    assert connection.receive() == "one two three"
    head = peer.socket.recv(6)
    assert head[0] == 128 | 10 and head[1] == 128 | 5
    assert bytes(byte ^ head[2 + i % 4] for i, byte in enumerate(peer.socket.recv(5))) == b"here?"


def test_pongs_are_skipped(peer, connection):
    peer.socket.sendall(frame(10, b"") + frame(1, b"word"))
    assert connection.receive() == "word"


@pytest.mark.parametrize("ending", [frame(8, b"\x03\xe8"), None])
def test_the_end_is_an_error(peer, connection, ending):
    if ending:
        peer.socket.sendall(ending)
    else:
        peer.socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ConnectionError):
        connection.receive()


@pytest.mark.parametrize("answer", [
    "HTTP/1.1 404 Not Found\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: of-another-key\r\n\r\n",
])
def test_what_is_no_websocket_is_an_error(answer):
    peer = Peer(answer)
    with pytest.raises(ConnectionError, match="no websocket"):
        WebSocket(peer.url)
    peer.close()
