"""A program in a pseudo-terminal, and what stands on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pyte

LIMIT_S = 60.0  # generous: the machine may be busy


class Terminal:
    """Runs `command` in a terminal of its own; a context manager, which kills what still runs. `screen` is pyte's."""

    def __init__(self, command, columns=80, rows=24, **environment):
        # The console of Linux is what pyte speaks.
        env = {**os.environ, "TERM": "linux", "LC_ALL": "C.UTF-8", **environment}
        env = {key: value for key, value in env.items() if value is not None}
        self.master, slave = pty.openpty()
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._set_size(columns, rows)
        self.modes_before = termios.tcgetattr(self.master)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)

    def _set_size(self, columns, rows):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns, rows):
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    def type(self, keys):
        os.write(self.master, keys)

    @property
    def text(self):
        return "\n".join(line.rstrip() for line in self.screen.display)

    def turn(self, seconds=0.02):
        """Takes what the program wrote within this time."""
        while select.select([self.master], [], [], seconds)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the program closed its end
                return
            if not data:
                return
            self.raw += data
            self.stream.feed(data)
            seconds = 0

    def wait(self, condition, between=lambda: None):
        """Turns until `condition(text)`; fails with the screen after LIMIT_S."""
        end = time.monotonic() + LIMIT_S
        while not condition(self.text):
            assert time.monotonic() < end, f"the screen stays at\n{self.text}"
            between()
            self.turn()

    def exit_code(self):
        """Of the program, which is about to end."""
        end = time.monotonic() + LIMIT_S
        while self.process.poll() is None:
            assert time.monotonic() < end, f"the program stays, with\n{self.text}"
            self.turn()
        self.turn(0)
        return self.process.returncode
