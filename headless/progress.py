"""Progress in a terminal: one line that renews itself; in a file or a pipe: one line per event worth reading."""
import shutil
import sys


class Display:
    def __init__(self, stream=None):
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.shown = ""

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        print(text, file=self.stream, flush=True)

    def show(self, text: str, key: str = "") -> None:
        """A line that the next one replaces. Where nothing can be replaced it is printed once per `key`."""
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r" + text[:width].ljust(min(len(self.shown), width)))
            self.stream.flush()
            self.shown = text
        elif (key or text) != self.shown:
            self.shown = key or text
            print(text, file=self.stream, flush=True)

    def clear(self) -> None:
        if self.live and self.shown:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r" + " " * min(len(self.shown), width) + "\r")
            self.stream.flush()
            self.shown = ""
