"""A small client of ComfyUI's HTTP and websocket API, standard library only.

    from headless import Client

    client = Client("http://127.0.0.1:8188")
    workflow["5"]["inputs"]["image"] = client.upload("portrait.png")
    outputs = client.run(workflow, on_progress=print)
    for image in client.images(outputs):
        Path(image["filename"]).write_bytes(client.download(image))
"""
import hashlib
import http.client
import json
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional
from urllib.parse import quote, urlencode, urlsplit

from .errors import ExecutionError, InterruptedRun, RejectedError, ServerError
from .websocket import WebSocket

FINAL = ("execution_success", "execution_error", "execution_interrupted")


@dataclass(frozen=True)
class Progress:
    """Where a run is: `node` (its id) called `title` is at `step` of `steps` (0 of 0 when it counts none);
    it is the `number`-th of `total` nodes that the run has reached."""

    node: str
    title: str
    step: int
    steps: int
    number: int
    total: int


class Client:
    """Talks to the ComfyUI at `url`. `timeout` in seconds holds for one answer, not for a run.

    Every method raises ServerError when the server does not answer or the connection breaks.
    """

    def __init__(self, url: str = "http://127.0.0.1:8188", timeout: float = 30.0):
        if "://" not in url:
            url = "http://" + url
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            valid = False
        if not valid:
            raise ServerError(f"{url!r} is no server address: give it as http://HOST:PORT")
        self.url = url.rstrip("/")
        self.timeout = timeout
        # No proxies: the websocket could not follow, and they have no business before a server on this machine.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(self, path: str, body=None, kind: str = "application/json"):
        """GET `path`, or POST `body` (bytes as they are, else as JSON). Returns (HTTP status, bytes of the answer)."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind})
        try:
            try:
                reply = self.opener.open(request, timeout=self.timeout)
            except urllib.error.HTTPError as error:
                reply = error
            with reply:
                return reply.status, reply.read()
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise ServerError(f"no answer from {self.url}: {reason}; is ComfyUI running there?") from error

    def json(self, path: str, body=None, kind: str = "application/json"):
        """As `call`, with the answer read as JSON (None when it is none)."""
        status, answer = self.call(path, body, kind)
        try:
            return status, json.loads(answer)
        except ValueError:
            return status, None

    def version(self) -> str:
        """ComfyUI's version. ServerError when something else answers at this address."""
        status, stats = self.json("/system_stats")
        try:
            return stats["system"]["comfyui_version"]
        except (TypeError, KeyError):
            raise ServerError(f"{self.url} answers (HTTP {status}), but it is not ComfyUI: check host and port") from None

    def node_info(self, class_type: str) -> "dict | None":
        """ComfyUI's description of a node class, or None when the server does not have it."""
        return (self.json("/object_info/" + quote(class_type, safe=""))[1] or {}).get(class_type)

    def model_folders(self, kind: str) -> "list[str]":
        """The folders where the server looks for models of `kind`, as "checkpoints"; empty when it does not tell."""
        found = self.json("/experiment/models")[1]
        return next((entry["folders"] for entry in found or [] if entry.get("name") == kind), [])

    def models(self, kind: str) -> "list[str]":
        """The names of the server's files of `kind`, as "checkpoints"; empty when it does not know the kind."""
        return self.json("/models/" + quote(kind, safe=""))[1] or []

    def metadata(self, kind: str, name: str) -> dict:
        """What the metadata of a safetensors file of the server say; empty when they say nothing."""
        return self.json(f"/view_metadata/{quote(kind, safe='')}?" + urlencode({"filename": name}))[1] or {}

    def upload(self, picture, name: Optional[str] = None, stored: Optional[str] = None) -> str:
        """Send a picture (a path, or its bytes with a `name`) and return the value for a Load Image node.

        The stored name comes from the content: the same picture sent again is the same file, and ComfyUI's cache
        of node results stays valid. With `stored`, a name without suffix, it replaces the picture of that name.
        """
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        suffix = Path(name or str(picture)).suffix.lower() or ".png"
        overwrite = "true" if stored else "false"
        stored = (stored or hashlib.sha256(data).hexdigest()[:16]) + suffix
        mark = uuid.uuid4().hex
        body = (
            f'--{mark}\r\nContent-Disposition: form-data; name="subfolder"\r\n\r\nportrait-atelier\r\n'
            f'--{mark}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\n{overwrite}\r\n'
            f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{stored}"\r\n'
            f"Content-Type: application/octet-stream\r\n\r\n"
        ).encode() + data + f"\r\n--{mark}--\r\n".encode()
        status, answer = self.json("/upload/image", body, "multipart/form-data; boundary=" + mark)
        if status != 200:
            reason = "it is larger than the server takes" if status == 413 else "see the server's log; is its disk full?"
            raise ServerError(f"{self.url} refused the picture {name or picture} (HTTP {status}): {reason}")
        return "/".join(part for part in (answer["subfolder"], answer["name"]) if part)

    def run(self, workflow: dict, on_progress: Optional[Callable[[Progress], None]] = None) -> dict:
        """Queue `workflow` (API format), wait for it, and return its outputs: {node id: {"images": [...], ...}}.

        Raises RejectedError, ExecutionError or InterruptedRun. Whatever else ends the wait, Ctrl-C included,
        cancels the run on the server.
        """
        client_id, prompt_id = uuid.uuid4().hex, str(uuid.uuid4())
        try:
            events = WebSocket(f"{self.url}/ws?clientId={client_id}", timeout=self.timeout)
        except OSError as error:
            raise ServerError(f"no websocket at {self.url}: {error}; is ComfyUI running there?") from error
        try:
            # The id is ours: a Ctrl-C while the server takes the workflow still knows what to cancel.
            status, answer = self.json("/prompt", {"prompt": workflow, "client_id": client_id, "prompt_id": prompt_id})
            if status != 200 or not answer or answer.get("node_errors"):
                raise RejectedError(rejection(workflow, status, answer))
            prompt_id = answer["prompt_id"]
            kind, data = self._wait(events, prompt_id, workflow, on_progress)
        except BaseException:
            self._cancel_quietly(prompt_id)
            raise
        finally:
            events.close()
        if kind == "execution_error":
            raise ExecutionError(failure(workflow, data))
        if kind == "execution_interrupted":
            raise InterruptedRun("the run was cancelled on the server")
        return self._outputs(prompt_id)

    def interrupt(self, prompt_id: str) -> None:
        """Cancel one run: take it off the queue, or stop it where it is. Other runs go on."""
        self.call("/queue", {"delete": [prompt_id]})
        self.call("/interrupt", {"prompt_id": prompt_id})

    def images(self, outputs: dict) -> "list[dict]":
        """The saved pictures among the outputs of a run, without previews, in the order of the nodes."""
        found = [image for output in outputs.values() for image in output.get("images", [])]
        return [image for image in found if image.get("type") == "output"]

    def download(self, image: dict) -> bytes:
        """The file of one entry of `images`."""
        query = urlencode({key: image[key] for key in ("filename", "subfolder", "type")})
        status, data = self.call("/view?" + query)
        if status != 200:
            raise ServerError(f"{self.url} has no file {image['filename']} any more (HTTP {status})")
        return data

    def _wait(self, events: WebSocket, prompt_id: str, workflow: dict, on_progress) -> "tuple[str, dict]":
        reached: "list[str]" = []
        while True:
            try:
                message = events.receive()
            except TimeoutError:
                # A node may be silent for minutes; a run that the server no longer knows is lost.
                if not self._known(prompt_id):
                    raise ServerError(f"{self.url} dropped the run: it was cleared from the queue or ComfyUI restarted") from None
                continue
            except OSError as error:
                raise ServerError(f"lost the connection to {self.url} during the run: {error}") from error
            if isinstance(message, bytes):
                continue  # a preview picture
            event = json.loads(message)
            kind, data = event.get("type"), event.get("data") or {}
            if data.get("prompt_id") != prompt_id:
                continue
            if kind in FINAL:
                return kind, data
            if kind == "execution_cached":
                reached += [node for node in data["nodes"] if node in workflow and node not in reached]
            elif kind in ("executing", "progress") and data.get("node"):
                node = str(data.get("display_node") or data["node"])
                if node not in reached:
                    reached.append(node)
                if on_progress:
                    step, steps = int(data.get("value", 0)), int(data.get("max", 0))
                    on_progress(Progress(node, title(workflow, node), step, steps, len(reached), len(workflow)))

    def _known(self, prompt_id: str) -> bool:
        queue = self.json("/queue")[1] or {}
        waiting = [job[1] for jobs in queue.values() for job in jobs]
        return prompt_id in waiting or bool(self.json("/history/" + prompt_id)[1])

    def _outputs(self, prompt_id: str) -> dict:
        # The history is written just after the last event: until then the run still stands in the queue.
        while self._known(prompt_id):
            history = self.json("/history/" + prompt_id)[1]
            if history:
                return history[prompt_id]["outputs"]
        raise ServerError(f"{self.url} forgot the result of the run: its history was cleared")

    def _cancel_quietly(self, prompt_id: str) -> None:
        try:
            self.interrupt(prompt_id)
        except ServerError:
            pass  # the first error is the one to tell


def title(workflow: dict, node: str) -> str:
    """What the user calls a node: its title in the workflow, else its class."""
    entry = workflow.get(str(node), {})
    return (entry.get("_meta") or {}).get("title") or entry.get("class_type") or str(node)


def first_line(text) -> str:
    """The first line of a message, with the second where the first only announces it."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()] or ["no message"]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def rejection(workflow: dict, status: int, answer: "dict | None") -> str:
    """The line that says why POST /prompt refused a workflow, with the nodes' own messages."""
    answer = answer or {}
    reasons = [
        f'node "{title(workflow, node)}" ({entry.get("class_type")}): {reason(error)}'
        for node, entry in (answer.get("node_errors") or {}).items() for error in entry.get("errors", [])
    ]
    if not reasons and isinstance(answer.get("error"), dict):
        reasons = [reason(answer["error"])]
    return "ComfyUI rejected the workflow: " + ("; ".join(dict.fromkeys(reasons)) or f"HTTP {status}")


def reason(error: dict) -> str:
    details = str(error.get("details") or "")
    if error.get("type") == "custom_validation_failed":  # "input - text", repeated for every checked input
        return first_line(details.split(" - ", 1)[-1])
    return first_line(": ".join(part for part in (str(error.get("message") or ""), details) if part))


def failure(workflow: dict, data: dict) -> str:
    """The line for an execution_error event."""
    kind = str(data.get("exception_type", "")).split(".")[-1]
    text = first_line(data.get("exception_message", ""))
    cure = ""
    if "OutOfMemory" in kind or "out of memory" in text.lower():
        cure = "; take smaller pictures, or close what else uses the memory"
    node = str(data.get("node_id"))
    return f'node "{title(workflow, node)}" ({data.get("node_type")}, id {node}) failed: {text} [{kind}]{cure}'
