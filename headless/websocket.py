"""A websocket client (RFC 6455) for what ComfyUI sends: the standard library only.

`stylize --server URL` works from a bare Python, without an environment of several gigabytes; progress comes by
websocket only, and the standard library has no client for it. Reading is nearly all there is to do.
"""
import base64
import hashlib
import os
import socket
import ssl
from urllib.parse import urlsplit

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class WebSocket:
    """Connect to `url` (http, https, ws or wss). `timeout` in seconds holds for connecting and for every `receive`.

    Raises OSError when the connection fails or breaks.
    """

    def __init__(self, url: str, timeout: float = 30.0):
        parts = urlsplit(url)
        secure = parts.scheme in ("https", "wss")
        self.buffer = bytearray()
        self.socket = socket.create_connection((parts.hostname, parts.port or (443 if secure else 80)), timeout)
        try:
            if secure:
                self.socket = ssl.create_default_context().wrap_socket(self.socket, server_hostname=parts.hostname)
            self._handshake(parts)
        except BaseException:
            self.socket.close()
            raise

    def receive(self) -> "str | bytes":
        """The next message. TimeoutError when none came in time; nothing is lost, call again."""
        while True:
            opcode, payload, size = self._message()
            del self.buffer[:size]
            if opcode == CLOSE:
                raise ConnectionError("the server closed the websocket")
            if opcode == PING:
                self._send(PONG, payload)
            elif opcode in (TEXT, BINARY):
                return payload.decode() if opcode == TEXT else payload

    def close(self) -> None:
        try:
            self._send(CLOSE, b"")
        except OSError:
            pass
        self.socket.close()

    def _handshake(self, parts) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        path = (parts.path or "/") + ("?" + parts.query if parts.query else "")
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.buffer:
            self._fill(len(self.buffer) + 1)
        end = self.buffer.index(b"\r\n\r\n")
        status, *headers = bytes(self.buffer[:end]).decode("latin-1").split("\r\n")
        del self.buffer[:end + 4]
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in headers)}
        accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
        if " 101" not in status or fields.get("sec-websocket-accept") != accept:
            raise ConnectionError(f"no websocket there: {status}")

    def _message(self) -> "tuple[int, bytes, int]":
        """Opcode, payload and size in the buffer of the next message, its fragments joined.

        A control frame between two fragments is answered first: it is taken out of the buffer by itself.
        Nothing is consumed here, so a timeout in the middle of a frame costs nothing.
        """
        opcode, payload, at = 0, b"", 0
        while True:
            self._fill(at + 2)
            first, second = self.buffer[at], self.buffer[at + 1]
            length, start = second & 127, at + 2
            if length > 125:
                start += 2 if length == 126 else 8
                self._fill(start)
                length = int.from_bytes(self.buffer[at + 2:start], "big")
            self._fill(start + length)
            data = bytes(self.buffer[start:start + length])
            if first & 15 >= CLOSE and at:
                frame = bytes(self.buffer[at:start + length])
                self.buffer[:] = frame + self.buffer[:at] + self.buffer[start + length:]
                return first & 15, data, len(frame)
            opcode, payload, at = opcode or first & 15, payload + data, start + length
            if first & 128:
                return opcode, payload, at

    def _fill(self, size: int) -> None:
        while len(self.buffer) < size:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the server closed the connection")
            self.buffer += data

    def _send(self, opcode: int, payload: bytes) -> None:
        """One short frame (control frames hold 125 bytes at most), masked, as clients must."""
        mask = os.urandom(4)
        body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.socket.sendall(bytes([128 | opcode, 128 | len(payload)]) + mask + body)
