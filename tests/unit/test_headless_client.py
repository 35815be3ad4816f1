"""What the client makes of the server's events, apart from any server."""
import json

import pytest

from portrait_atelier.headless import Client, ServerError
from portrait_atelier.headless.client import failure

WORKFLOW = {"1": {"class_type": "A", "inputs": {}, "_meta": {"title": "First"}}, "2": {"class_type": "B", "inputs": {}}}


class Events:
    def __init__(self, *events):
        self.events = [event if isinstance(event, bytes) else json.dumps(event) for event in events]

    def receive(self):
        return self.events.pop(0)


def event(kind, prompt_id="mine", **data):
    return {"type": kind, "data": {"prompt_id": prompt_id, **data}}


def test_only_the_own_runs_events_count_and_previews_are_skipped():
    seen = []
    events = Events(
        {"type": "status", "data": {"status": {}}}, event("executing", node="1"), b"\x00\x00\x00\x01preview",
        event("execution_success", "theirs"), event("progress", "theirs", node="2", value=9, max=9),
        event("progress", node="1", value=1, max=4), event("executing", node="2"), event("executing", node=None),
        event("execution_success"), event("never reached"),
    )
    assert Client()._wait(events, "mine", WORKFLOW, seen.append)[0] == "execution_success"
    assert [(p.title, p.step, p.steps, p.number, p.total) for p in seen] == [
        ("First", 0, 0, 1, 2), ("First", 1, 4, 1, 2), ("B", 0, 0, 2, 2)]


def test_cached_nodes_count_as_reached():
    seen = []
    events = Events(event("execution_cached", nodes=["1"]), event("executing", node="2"), event("execution_error", node_id="2"))
    assert Client()._wait(events, "mine", WORKFLOW, seen.append)[0] == "execution_error"
    assert [(p.number, p.total) for p in seen] == [(2, 2)]


@pytest.mark.parametrize("data, told", [
    ({"exception_type": "torch.OutOfMemoryError", "exception_message": "Allocation failed\n"}, "take smaller pictures"),
    ({"exception_type": "ValueError", "exception_message": "\n  bank does not fit\nmore\n"}, "bank does not fit [ValueError]"),
    ({"exception_type": "E", "exception_message": "Error(s) in loading:\n\tmissing key x\n\tand y"}, "loading: missing key x [E]"),
    ({}, "no message"),
])
def test_a_failure_is_one_line_that_names_the_node(data, told):
    text = failure(WORKFLOW, {"node_id": "1", "node_type": "A", **data})
    assert text.startswith('node "First" (A, id 1) failed: ') and told in text and "\n" not in text


@pytest.mark.parametrize("url, shown", [("127.0.0.1:81", "http://127.0.0.1:81"), ("https://host/comfy/", "https://host/comfy")])
def test_addresses(url, shown):
    assert Client(url).url == shown


def test_a_wrong_address_is_told():
    with pytest.raises(ServerError, match="no server address"):
        Client("file:///etc/passwd")
