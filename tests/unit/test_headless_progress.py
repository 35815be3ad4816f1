"""What a terminal and what a file see of the progress."""
import io

import pytest

from portrait_atelier.headless import AtelierError
from portrait_atelier.headless.progress import Display
from portrait_atelier.headless.stylize import save


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self):
        """The lines as a terminal shows them: a carriage return goes back to the start of the line."""
        lines = []
        for line in self.getvalue().split("\n"):
            cells = []
            for part in line.split("\r"):
                cells[:len(part)] = part
            lines.append("".join(cells).rstrip())
        return lines


def test_in_a_terminal_a_line_replaces_the_last():
    stream = Terminal()
    display = Display(stream)
    display.show("a long line of progress")
    display.show("short")
    assert stream.screen() == ["short"]
    display.say("stays")
    display.show("next")
    assert stream.screen() == ["stays", "next"]
    display.clear()
    assert stream.screen() == ["stays", ""]


def test_a_line_wider_than_the_terminal_is_cut(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    Display(stream).show("x" * 100)
    assert stream.screen() == ["x" * 19]


def test_in_a_file_a_line_is_printed_once_per_key():
    stream = io.StringIO()
    display = Display(stream)
    for seconds in range(3):
        display.show(f"Waiting {seconds} s", key="wait")
    display.show("[1/2] Load")
    display.show("[1/2] Load")
    display.clear()
    display.say("done")
    assert stream.getvalue() == "Waiting 0 s\n[1/2] Load\ndone\n"


def test_a_picture_that_cannot_be_saved_leaves_no_part_behind(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(AtelierError, match="cannot save .*x.png"):
        save(tmp_path / "x.png", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
