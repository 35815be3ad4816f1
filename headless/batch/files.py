"""Results as files: PNG as ComfyUI writes it, or the WebP and JPEG that it makes of it; with the workflow in it, or without."""
import json
import struct
import zlib
from urllib.parse import urlencode

from ..client import Client
from ..errors import AtelierError, ServerError

FORMATS = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
PNG = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf")
LONGEST = 65000  # bytes of the workflow in a JPEG, whose segments have 64 kB


def fetch(client: Client, image: dict, kind: str, quality: int) -> bytes:
    """The picture `image` of a run's outputs, without metadata. ServerError for an answer that is no such picture."""
    if kind == "png":
        data = client.download(image)
    else:
        query = urlencode({**{key: image[key] for key in ("filename", "subfolder", "type")}, "preview": f"{kind};{quality}"})
        status, data = client.call("/view?" + query)
        if status != 200:
            raise ServerError(f"{client.url} has no file {image['filename']} any more (HTTP {status})")
    begins = {"png": PNG, "webp": b"RIFF", "jpeg": b"\xff\xd8\xff"}[kind]
    if not data.startswith(begins):
        raise AtelierError(f"{client.url} sent no {kind.upper()} picture for {image['filename']}, but {data[:16]!r}")
    return plain_png(data) if kind == "png" else data


def with_workflow(data: bytes, workflow: dict) -> bytes:
    """The picture with a workflow in API format in it, where ComfyUI's editor finds it when the file is dropped on it."""
    text = json.dumps(workflow).encode("ascii")
    if data.startswith(PNG):
        return data[:33] + chunk(b"tEXt", b"prompt\0" + text) + data[33:]  # after the header
    if data.startswith(b"RIFF"):
        return webp_with_exif(data, exif(b"prompt:" + text))
    if len(text) > LONGEST:
        return data
    body = b"Exif\0\0" + exif(b"prompt:" + text)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def cut_off(data: bytes) -> bool:
    """Whether a picture ends before its end, as after a broken download: ComfyUI would fill up the rest with grey."""
    if data.startswith(PNG):
        return b"IEND" not in data[-4096:]
    if data[:4] == b"RIFF":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if not data.startswith(b"\xff\xd8"):
        return False  # a format of which the end is not known here
    at = 2
    while data[at:at + 1] == b"\xff" and data[at + 1:at + 2] != b"\xda":  # over the segments, in which a thumbnail may end
        at += 2 + int.from_bytes(data[at + 2:at + 4], "big")
    return data.find(b"\xff\xd9", at) < 0


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def plain_png(data: bytes) -> bytes:
    """A PNG without texts. AtelierError for one that is cut off."""
    kept, at, kind = [PNG], 8, b""
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind not in TEXTS:
            kept.append(data[at:at + 12 + length])
        at += 12 + length
    if at != len(data) or kind != b"IEND":
        raise AtelierError("the server sent a PNG that is cut off")
    return b"".join(kept)


def exif(text: bytes) -> bytes:
    """A TIFF header with one entry, Model, which is where ComfyUI puts the workflow of a WebP."""
    text += b"\0"
    return b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0110, 2, len(text), 26, 0) + text


def webp_with_exif(data: bytes, body: bytes) -> bytes:
    """The WebP in its extended form with an EXIF chunk."""
    kind, rest = data[12:16], data[12:]
    if kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", data[26:30]))
        flags = 0
    elif kind == b"VP8L":
        bits, = struct.unpack("<I", data[21:25])
        width, height, flags = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 0x10 * (bits >> 28 & 1)
    else:  # extended already
        flags, rest = data[20], data[30:]
        width, height = (int.from_bytes(data[at:at + 3], "little") + 1 for at in (24, 27))
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<IB3x", 10, flags | 0x08) + size + rest
    chunks += b"EXIF" + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks
