"""Rows, names, the report and the files of a batch, without a server."""
import io
import json
import os

import pytest
from PIL import Image

from portrait_atelier.headless import AtelierError
from portrait_atelier.headless.batch import files, graph as graphs
from portrait_atelier.headless.batch.report import DiskFull, Report, stamp
from portrait_atelier.headless.batch.rows import Rows, entries
from portrait_atelier.headless.workflow import load

WORKFLOW = {"1": {"class_type": "KSampler", "inputs": {"text": "ä"}}}


def test_a_folder_of_twenty_thousand(tmp_path):
    """In the order of the call, the contents one after another; nothing is opened."""
    (tmp_path / "in").mkdir()
    for number in range(20_000):
        os.mknod(tmp_path / "in" / f"{number:05}.jpg")
    (tmp_path / "in" / ".hidden.jpg").touch()
    (tmp_path / "in" / "folder.jpg").mkdir()
    (tmp_path / "s").mkdir()
    for name in ("a", "b"):
        (tmp_path / "s" / f"{name}.png").touch()
    rows = Rows({"content": entries(str(tmp_path / "in"), "content"), "style": entries(str(tmp_path / "s" / "*"), "style")}, "{style}/{content}_{row:06}")
    assert len(rows) == 40_000
    groups = rows.groups()
    first, second = next(groups), next(groups)
    assert [row.name for row in first] == ["a/00000_000001", "b/00000_000002"] and [row.number for row in second] == [3, 4]
    assert sum(len(group) for group in groups) == 40_000 - 4


def test_rows_of_a_csv_keep_one_content_together(tmp_path):
    """In the order of their first mention; a style that comes back does so beside its content."""
    (tmp_path / "x.csv").write_text("content,style,seed\nb,2,1\na,1,\nb,1,2\nb,2,3\n")
    rows = Rows({"content": entries(str(tmp_path / "x.csv"), "content")}, "{row}")
    assert [[(row.number, row.pictures["Style"].name) for row in group] for group in rows.groups()] == [[(3, "1"), (1, "2"), (4, "2")], [(2, "1")]]
    assert rows.row(rows.first[1], (), 2).settings == {}


def test_names_are_safe(tmp_path):
    (tmp_path / "x.csv").write_text('content,prompt\na.png,"a/b: ""c""' + "d" * 200 + '"\n')
    row, = next(Rows({"content": entries(str(tmp_path / "x.csv"), "content")}, "{prompt}_{content}").groups())
    assert row.name == "a-b- -c-" + "d" * 72 + "_a"


@pytest.mark.parametrize("text, part", [("content\n", "no lines below"), ("content,seed\n,3\n", "line 2: the cell of 'content' is empty"),
                                        ("", "its columns are none"), ('content\n"a', "cannot be read as a CSV")])
def test_bad_tables(tmp_path, text, part):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(AtelierError, match=part):
        entries(str(tmp_path / "x.csv"), "content")


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"content\n\xff\xfe\n")
    with pytest.raises(AtelierError, match="UTF-8"):
        entries(str(tmp_path / "x.csv"), "content")


def drawn(kind, mode="RGB", **options):
    picture = Image.radial_gradient("L").resize((37, 21)).convert(mode)
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return picture, data.getvalue()


@pytest.mark.parametrize("kind, mode, options", [("PNG", "RGB", {}), ("WEBP", "RGB", {}), ("WEBP", "RGB", {"lossless": True}),
                                                 ("WEBP", "RGBA", {"lossless": True}), ("WEBP", "RGBA", {}), ("WEBP", "RGB", {"exif": b""}),
                                                 ("JPEG", "RGB", {})])
def test_the_workflow_is_in_the_picture_and_the_picture_stays(kind, mode, options):
    _, data = drawn(kind, mode, **options)
    told = files.with_workflow(data, WORKFLOW)
    before, after = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(told))
    assert after.format == kind and after.size == (37, 21) and after.mode == before.mode
    assert after.tobytes() == before.tobytes()
    text = after.text["prompt"] if kind == "PNG" else after.getexif()[0x0110].removeprefix("prompt:")
    assert json.loads(text) == WORKFLOW
    if kind == "PNG":
        assert files.plain_png(told) == files.plain_png(data)


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("JPEG", {}), ("WEBP", {})])
def test_what_is_cut_off(kind, options):
    """A thumbnail inside is whole and ends like a JPEG, and a phone's film behind is no part of the picture."""
    _, small = drawn("JPEG")
    exif = Image.Exif()
    exif[0x010E] = small.decode("latin-1")
    _, data = drawn(kind, exif=exif)
    assert not files.cut_off(data)
    for share in (0.95, 0.99):
        assert files.cut_off(data[:int(len(data) * share)])
    if kind == "JPEG":
        assert not files.cut_off(data + b"film" * 100_000)
    with pytest.raises(AtelierError, match="cut off"):
        files.plain_png(drawn("PNG")[1][:-5])


def test_the_report_is_continued(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"1")
    report = Report(tmp_path / "out", {"seed": 1})
    report.save("sub/a.png", b"result")
    report.write({"output": "sub/a.png", "error": None, "stamp": stamp([picture])})
    report.write({"output": "b.png", "error": "it is broken"})
    with pytest.raises(AtelierError, match="another batch is writing there"):
        Report(tmp_path / "out", {"seed": 1})
    report.close()
    with (tmp_path / "out" / "report.jsonl").open("ab") as file:
        file.write('{"output": "ä'.encode()[:-1])
    again = Report(tmp_path / "out", {"seed": 1})
    assert again.done("sub/a.png", stamp([picture])) and not again.done("b.png", "") and not again.done("sub/c.png", "")
    assert len(again.path.read_text(encoding="utf-8").splitlines()) == 3
    picture.write_bytes(b"another")
    assert not again.done("sub/a.png", stamp([picture]))
    (tmp_path / "out" / "found.png").touch()
    assert again.done("found.png", stamp([picture])) and not again.told("found.png")
    again.close()
    with pytest.raises(AtelierError, match=r"holds results of another call \(seed differ\)"):
        Report(tmp_path / "out", {"seed": 2})
    (tmp_path / "out" / "report.jsonl").write_text("a diary\n")
    with pytest.raises(AtelierError, match="is no report of a batch"):
        Report(tmp_path / "out", {"seed": 1})


def test_a_full_disk_at_the_last_moment(tmp_path, monkeypatch):
    """When the result is put in its place: no part of it stays."""
    report = Report(tmp_path / "out", {})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFull, match="no space left on the disk of .*a.png: make room"):
        report.save("a.png", b"x")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.jsonl"]
    report.close()


def test_which_workflows_take_several_contents():
    """Those where nothing but the sampler's own nodes sees them together."""
    def fits(name, first):
        return graphs.can_join(graphs.result_only(load(name)), first)

    assert fits("zepo_demo", "Content") and fits("zepo_sdxl_lightning", "Content")
    assert not fits("fastface_demo", "Face")
    graph = graphs.result_only(load("zepo_demo"))
    node, = [node for node, entry in graph.items() if entry["class_type"] == "KSampler"]
    graph[node]["inputs"]["sampler_name"] = "dpmpp_sde"
    assert not graphs.can_join(graph, "Content"), "its noise would be another"


def test_features_are_the_same_only_with_all_that_made_them():
    graph = graphs.result_only(load("zepo_demo"))
    node, = graphs.kept_features(graph, "Content", ["Style"])
    assert graph[node]["class_type"] == graphs.MERGE
    before = graphs.key(graph, node)
    graph["5:112"]["inputs"]["seed"] = 9  # the sampler's
    graph["2"]["inputs"]["image"] = "other content"
    assert graphs.key(graph, node) == before
    for place, name, value in (("3", "image", "other style"), ("5:101", "text", "other prompt"), ("5:109", "timestep", 199), ("5:110", "ratio", 0.25)):
        old = graph[place]["inputs"][name]
        graph[place]["inputs"][name] = value
        assert graphs.key(graph, node) != before
        graph[place]["inputs"][name] = old
    assert graphs.unet_rows(graph) == 8 and graphs.size(graph) == (256, 256)
