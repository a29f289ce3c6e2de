"""The longest times in which a command prints nothing on a terminal.

python benchmarks/silence.py train fox.png --subject fox --style watercolor
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

SHOWN = 8
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]+")


def main() -> None:
    """Run the command under a pseudo-terminal of 80 columns, pass its output on, and print its gaps."""
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "unziplora_cli", *sys.argv[1:]]
    started = last = time.monotonic()
    before, gaps = "(start)", []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # Linux: the other side is closed
                break
            if not data:
                break
            now = time.monotonic()
            gaps.append((now - last, last - started, before))
            sys.stdout.buffer.write(data)
            lines = [line for line in _CONTROL.split(data.decode(errors="replace")) if line.strip()]
            last, before = now, lines[-1].strip() if lines else before
    gaps.append((time.monotonic() - last, last - started, before))
    print(f"\n{time.monotonic() - started:.1f} s, exit code {process.returncode}; the longest silences:")
    for gap, at, text in sorted(gaps, reverse=True)[:SHOWN]:
        print(f"{gap:6.2f} s after {at:6.1f} s: {text}")


if __name__ == "__main__":
    main()
