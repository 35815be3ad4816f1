"""headless.Client against a real ComfyUI."""
import io
import threading

import pytest
import torch
from PIL import Image

from portrait_atelier.headless import Client, ExecutionError, InterruptedRun, RejectedError, ServerError


@pytest.fixture
def ready(client, kit_workflow, pictures):
    """The kit workflow with its pictures uploaded."""
    for node, path in zip(("3", "4"), pictures):
        kit_workflow[node]["inputs"]["image"] = client.upload(path)
    return kit_workflow


def picture(data):
    return torch.frombuffer(bytearray(Image.open(io.BytesIO(data)).convert("RGB").tobytes()), dtype=torch.uint8)


def waiting(workflow, seconds=60.0):
    """The workflow with a node that waits between decoding and saving."""
    workflow["20"] = {"class_type": "KitWait", "inputs": {"image": ["12", 0], "seconds": seconds}}
    workflow["13"]["inputs"]["images"] = ["20", 0]
    return workflow


def test_a_run_gives_pictures_and_progress(client, ready):
    ready["11"]["inputs"]["seed"] = 11
    seen = []
    outputs = client.run(ready, seen.append)
    images = client.images(outputs)
    assert set(outputs) == {"13"} and len(images) == 1
    assert Image.open(io.BytesIO(client.download(images[0]))).size == (128, 128)
    steps = [event.step for event in seen if event.title == "KSampler" and event.steps == 4]
    # ComfyUI leaves out steps that come too fast, but never the last.
    assert steps == sorted(steps) and steps[-1] == 4
    assert [event.number for event in seen] == sorted(event.number for event in seen)
    assert seen[-1].number == seen[-1].total == len(ready)


def test_the_same_run_again_is_the_same_picture_and_the_style_matters(client, ready, pictures):
    ready["11"]["inputs"]["seed"] = 12
    first, = client.images(client.run(ready))
    again, = client.images(client.run(ready))
    assert torch.equal(picture(client.download(first)), picture(client.download(again)))
    ready["4"]["inputs"]["image"] = client.upload(pictures[0])
    other, = client.images(client.run(ready))
    assert not torch.equal(picture(client.download(first)), picture(client.download(other)))


def test_an_uploaded_picture_is_named_by_its_content(client, pictures):
    content, style = pictures
    assert client.upload(content) == client.upload(content.read_bytes(), "other.png")
    assert client.upload(content) != client.upload(style)


def test_a_run_can_be_interrupted_by_its_id(client, ready):
    """Another thread cancels the run as soon as the waiting node reports a step; a second run then succeeds."""
    started = threading.Event()

    def cancel():
        started.wait(60)
        running = client.json("/queue")[1]["queue_running"]
        client.interrupt(running[0][1])

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(InterruptedRun):
        client.run(waiting(ready), lambda event: event.node == "20" and started.set())
    thread.join()
    assert client.images(client.run(waiting(ready, 0.0)))


def test_an_exception_in_the_callback_cancels_the_run(client, ready):
    """As Ctrl-C does, which may come at any time."""
    ids = []

    def stop(event):
        if event.node == "20":
            ids.append(client.json("/queue")[1]["queue_running"][0][1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.run(waiting(ready), stop)
    assert client.images(client.run(waiting(ready, 0.0)))
    messages = client.json("/history/" + ids[0])[1][ids[0]]["status"]["messages"]
    assert "execution_interrupted" in [kind for kind, _ in messages]


def test_a_pending_run_is_taken_off_the_queue_and_the_running_one_goes_on(client, ready):
    """The second run waits behind the first; cancelling the second must not stop the first."""
    first_is_running, outcome = threading.Event(), []

    def first():
        outcome.append(client.run(waiting(ready, 3.0), lambda event: event.node == "20" and first_is_running.set()))

    thread = threading.Thread(target=first)
    thread.start()
    assert first_is_running.wait(60)
    pending = "00000000-0000-4000-8000-000000000001"
    assert client.json("/prompt", {"prompt": ready, "prompt_id": pending})[0] == 200
    client.interrupt(pending)
    assert not client.json("/queue")[1]["queue_pending"]
    thread.join()
    assert client.images(outcome[0])


def test_a_dropped_run_is_noticed(server, ready):
    """Someone clears the queue: no event ever comes, so the client asks after its timeout."""
    blocker, impatient = Client(server.client.url), Client(server.client.url, timeout=1.0)
    running, outcome = threading.Event(), []

    def block():
        with pytest.raises(InterruptedRun):
            blocker.run(waiting(ready), lambda event: event.node == "20" and running.set())

    def wait():
        with pytest.raises(ServerError, match="dropped the run"):
            impatient.run(dict(ready))
        outcome.append("noticed")

    threads = [threading.Thread(target=target, daemon=True) for target in (block, wait)]
    threads[0].start()
    assert running.wait(60)
    threads[1].start()
    while not blocker.json("/queue")[1]["queue_pending"]:
        pass
    blocker.call("/queue", {"clear": True})
    threads[1].join(30)
    blocker.interrupt(blocker.json("/queue")[1]["queue_running"][0][1])
    threads[0].join(30)
    assert outcome == ["noticed"]


def test_the_failing_node_and_its_message_are_told(client, ready):
    ready["21"] = {"class_type": "KitFail", "_meta": {"title": "Trouble"},
                   "inputs": {"image": ["12", 0], "text": "the lamp is out", "early": False, "how": "raise"}}
    ready["13"]["inputs"]["images"] = ["21", 0]
    with pytest.raises(ExecutionError) as error:
        client.run(ready)
    assert str(error.value) == 'node "Trouble" (KitFail, id 21) failed: the lamp is out [ValueError]'


@pytest.mark.parametrize("change, told", [
    ({"early": True, "text": "not this way"}, r'workflow: node "Trouble" \(KitFail\): not this way$'),
    ({"how": "sing"}, "sing"),
    ({"image": ["99", 0]}, "99"),
    ({"image": ["1", 0]}, 'node "Trouble".*IMAGE'),
])
def test_a_rejected_workflow_tells_the_nodes_own_message(client, ready, change, told):
    ready["21"] = {"class_type": "KitFail", "_meta": {"title": "Trouble"},
                   "inputs": {"image": ["12", 0], "text": "no", "early": False, "how": "raise", **change}}
    ready["13"]["inputs"]["images"] = ["21", 0]
    with pytest.raises(RejectedError, match=told) as error:
        client.run(ready)
    assert "\n" not in str(error.value)


def test_a_half_valid_workflow_is_rejected_and_not_left_in_the_queue(client, ready):
    """ComfyUI answers 200 and would run the other output."""
    ready["30"] = {"class_type": "SaveImage", "inputs": {"images": ["12", 0], "filename_prefix": 5.5, "extra": 1}}
    ready["31"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}, "_meta": {"title": "Loose end"}}
    with pytest.raises(RejectedError, match='node "Loose end".*images'):
        client.run(waiting(ready))
    assert client.images(client.run({key: ready[key] for key in ready if key != "31"} | {
        "20": {"class_type": "KitWait", "inputs": {"image": ["12", 0], "seconds": 0.0}}}))


def test_an_empty_workflow_is_rejected(client):
    with pytest.raises(RejectedError, match="no outputs"):
        client.run({"1": {"class_type": "KitModel", "inputs": {}}})


def test_unknown_classes_have_no_description(client):
    assert client.node_info("AtelierSEACPatch")["name"] == "AtelierSEACPatch"
    assert client.node_info("No such/class") is None


def test_the_checkpoint_folders_are_told(server):
    assert str(server.base / "models" / "checkpoints") in server.client.model_folders("checkpoints")
