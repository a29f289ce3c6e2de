"""Streams that are closed, full or of another encoding, Ctrl-C at the start, and broken environments."""

import errno
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from unziplora_cli.cli import _streams
from unziplora_cli.cli._output import Table, log_text, one_line
from unziplora_cli.config import Words

PROGRAM = [sys.executable, "-m", "unziplora_cli"]


@pytest.fixture
def encoded(monkeypatch):
    """Gives stdout and stderr an encoding; returns functions that read them."""

    def use(encoding):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])

        def read(stream):
            stream.flush()
            return stream.buffer.getvalue().decode(encoding)

        return [lambda stream=stream: read(stream) for stream in streams]

    return use


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "latin-1", "ascii", "cp437", "utf-16"])
def test_any_words_are_shown_in_any_encoding(encoded, make_project, encoding):
    from unziplora_cli.__main__ import run

    words = Words("红狐 🦊", "größe")
    make_project("fox", words=words)
    for line in (["list"], ["show", "fox"], ["list", "--json"], ["show", "nobody"]):
        out, err = encoded(encoding)
        assert run(line) == (3 if "nobody" in line else 0)
        assert "Traceback" not in err()
        if line == ["list", "--json"]:
            (project,) = json.loads(out())["result"]["projects"]
            assert (project["subject"], project["style"]) == (words.subject, words.style)
        elif line == ["list"]:
            text = " ".join(out().split())
            assert ("红狐" if encoding.startswith("utf") else r"\u7ea2\u72d0") in text.replace("\\ ", "\\")


def test_a_file_name_that_is_no_text_is_escaped(unziplora):
    name = os.fsdecode(b"f\xff.png")
    completed = unziplora("check", name)
    assert completed.code == 6
    assert r"f\udcff.png" in completed.err
    assert unziplora("check", name, "--json").envelope["error"]["message"].count(name) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX devices and shells")
@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("list > /dev/full", 1, "Cannot write to the standard output: No space left on device."),
        ("show nobody 2> /dev/full", 3, ""),
        ("show nobody --json > /dev/full", 3, "Cannot write to the standard output"),
        ("list >&-", 0, ""),
        ("list <&- 2>&-", 0, ""),
    ],
)
def test_lost_streams_show_no_traceback(line, code, says):
    if "/dev/full" in line and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    command = subprocess.list2cmdline(PROGRAM)
    completed = subprocess.run(f"{command} {line}", shell=True, capture_output=True, text=True)
    assert completed.returncode == code
    assert says in completed.stderr
    assert completed.stderr.count("\n") == bool(says)


def test_a_reader_that_stops_is_no_error():
    read, write = os.pipe()
    os.close(read)
    try:
        completed = subprocess.run([*PROGRAM, "list"], stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert (completed.returncode, completed.stderr) == (1, "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("module", ["typer", "unziplora_cli.cli._output"])
def test_ctrl_c_while_importing(module, tmp_path):
    """The signal arrives in the middle of an import of the program."""
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from unziplora_cli.__main__ import main\n"
        "main()"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program, "list", "--json"], capture_output=True, text=True
    )
    assert (completed.returncode, completed.stderr) == (130, "")
    assert json.loads(completed.stdout)["error"]["exit_code"] == 130


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_at_the_first_import_of_main():
    """Nothing of the program is imported before `main` handles it."""
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if not name.startswith('unziplora_cli'):\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "import unziplora_cli\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from unziplora_cli.__main__ import main\n"
        "main()"
    )
    completed = subprocess.run([sys.executable, "-c", program, "list"], capture_output=True, text=True)
    assert (completed.returncode, completed.stdout, completed.stderr) == (130, "", "")


@pytest.mark.skipif(sys.platform == "win32", reason="the C library is found otherwise")
def test_the_end_runs_what_libraries_registered_and_frees_nothing():
    """The interpreter would need seconds to free all objects; some libraries then print that they leak."""
    program = (
        "import atexit, ctypes, sys\n"
        "from unziplora_cli.__main__ import main\n"
        "from unziplora_cli.cli import projects\n"
        "def store(session):\n"
        "    atexit.register(lambda: print('registered', flush=True))\n"
        "    ctypes.pythonapi.Py_AtExit(ctypes.CDLL(None).abort)  # called once all objects are freed\n"
        "    raise SystemExit(7)\n"
        "projects.Session.store = store\n"
        "sys.argv[1:] = ['list']\n"
        "main()"
    )
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (completed.returncode, completed.stdout) == (7, "registered\n")


def test_an_interrupt_that_python_would_drop_arrives():
    program = (
        "import signal, sys\n"
        "from unziplora_cli.__main__ import main\n"
        "from unziplora_cli.cli import projects\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finalized:\n"
        "    def __del__(self):\n"
        "        raise KeyboardInterrupt\n"
        "def store(session):\n"
        "    Finalized()\n"
        "    while True:\n"
        "        pass\n"
        "projects.Session.store = store\n"
        "sys.argv[1:] = ['list']\n"
        "main()"
    )
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (completed.returncode, completed.stderr) == (130, "Error: Interrupted.\n")


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RANK": "abc"}, "RANK is 'abc'"),
        ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is '-1'"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE is 1"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2, but LOCAL_RANK is not set"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE is '²'"),
        ({"LOCAL_RANK": "1.5"}, "LOCAL_RANK is '1.5'"),
        ({"UNZIPLORA_HOME": "~no-such-user/x"}, "UNZIPLORA_HOME is '~no-such-user/x'"),
        ({"HF_HUB_DOWNLOAD_TIMEOUT": "long"}, "HF_HUB_DOWNLOAD_TIMEOUT is 'long'"),
        ({"HF_HUB_DOWNLOAD_TIMEOUT": "4,2"}, "'4,2', but it must be a whole number from 1"),
        ({"HF_HUB_DOWNLOAD_TIMEOUT": "0"}, "'0', but it must be a whole number from 1 to 999999999."),
        ({"OMP_NUM_THREADS": "-1"}, "'-1', but it must be a whole number from 1"),
        ({"OMP_NUM_THREADS": "4,-2"}, "'4,-2', but it must be whole numbers from 1"),
        ({"OMP_NUM_THREADS": "4,"}, "OMP_NUM_THREADS is '4,'"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(unziplora, monkeypatch, variables, says):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    completed = unziplora("list")
    assert (completed.code, completed.out) == (2, "")
    assert says in completed.message
    assert "->" in completed.err


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        {"HF_HOME": "~no-such-user", "HF_HUB_CACHE": ""},
        {"COLUMNS": "²", "TERMINAL_WIDTH": "wide", "LINES": "-3"},
        {"COLUMNS": "99999999999"},
        {"TMPDIR": "/no/such/folder"},
        {"HF_ENDPOINT": "nonsense"},
        {"OMP_NUM_THREADS": "4, 2,1"},
    ],
)
def test_a_variable_that_does_not_matter_is_ignored(unziplora, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for line in ("list", "models list", "list --help"):
        completed = unziplora(*line.split())
        assert (completed.code, completed.err) == (0, "")


@pytest.mark.parametrize("address", ["nonsense", "ftp://hub", "https://", "http://[", "https://a:b"])
def test_the_address_of_the_hub_is_checked_before_it_is_used(unziplora, monkeypatch, address):
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    completed = unziplora("models", "pull", "sdxl")
    assert completed.code == 2
    assert f"HF_ENDPOINT is {address!r}" in completed.message


def test_without_a_user_folder_the_variable_to_set_is_named(unziplora, monkeypatch):
    monkeypatch.delenv("UNZIPLORA_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    completed = unziplora("list")
    assert completed.code == 2
    assert "Set HOME, or UNZIPLORA_HOME" in completed.message


def test_a_home_with_an_impossible_name_is_named(unziplora):
    completed = unziplora("--home", "/" + "x" * 5000, "list")
    assert completed.code == 3
    assert os.strerror(errno.ENAMETOOLONG) in completed.message


def test_text_of_libraries_is_cleaned_and_the_output_of_rich_is_not():
    raw = io.StringIO()
    stream = _streams.Stream(raw, log_text)
    stream.write("a\x1b[31mb\x1b[A\rc\u202e\n")
    _streams.uncleaned(stream).write("\x1b[1mbold")
    assert raw.getvalue() == "a\ufffd[31mb\x1b[A\rc\ufffd\n\x1b[1mbold"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a\nError: b", "a Error: b"),
        ("\u202egnp.xof", "\ufffdgnp.xof"),
        ("f\u200box\ufeff", "f\ufffdox\ufffd"),
        ("tag\U000e0041", "tag\ufffd"),
        ("a\x9b31m\x1b]0;x\x07", "a\ufffd31m\ufffd]0;x\ufffd"),
        ("größe 红狐 🦊", "größe 红狐 🦊"),
        ("line\u2028break", "line\ufffdbreak"),
    ],
)
def test_a_name_is_one_visible_line(text, clean):
    assert one_line(text) == clean


def test_json_escapes_what_a_terminal_would_execute(capsys):
    from unziplora_cli.cli._output import Output

    output = Output()
    output.json = True
    text = "\x9b31m\u202e\U000e0041\x7f\x1b 红"
    output.result({"name": text})
    out = capsys.readouterr().out
    assert "红" in out
    assert not set(out) & set("\x9b\u202e\U000e0041\x7f\x1b")
    assert json.loads(out)["result"]["name"] == text


def test_a_cell_is_one_line(capsys):
    from unziplora_cli.cli._output import Output

    Output().result({}, table=Table(("name", "x"), [["a\nb", "\x1b[2J"]]))
    assert "a b" in capsys.readouterr().out


def test_questions_are_cleaned(monkeypatch):
    from unziplora_cli.cli._output import Output

    questions = []
    monkeypatch.setattr("typer.prompt", lambda text, **options: questions.append(text) or "fox")
    monkeypatch.setattr("typer.confirm", lambda text, **options: questions.append(text) or True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    output = Output()
    assert output.ask("Subject (\x1b[2J\n.png)") == "fox"
    assert output.confirm("Delete \u202ex?", instead=None)
    assert questions == ["Subject (\ufffd[2J .png)", "Delete \ufffdx?"]


def test_a_long_question_is_broken_between_words(monkeypatch):
    from unziplora_cli.cli._output import Output

    questions = []
    monkeypatch.setattr("typer.prompt", lambda text, **options: questions.append(text) or "owl")
    monkeypatch.setenv("COLUMNS", "40")
    Output().ask("What does eule zeichnung.png show", "an owl drawn with a pencil")
    assert questions == ["What does eule zeichnung.png show [an\nowl drawn with a pencil]"]


def table_lines(capsys, monkeypatch, columns, *rows):
    from unziplora_cli.cli._output import Output

    monkeypatch.setenv("COLUMNS", str(columns))
    names = tuple(f"c{number}" for number in range(len(rows[0])))
    Output().result({}, table=Table(names, rows))
    return [line for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_a_table_wraps_between_words(capsys, monkeypatch):
    row = ["fox", "a red fox with a very long tail and small ears", "in watercolor", "2026-11-28", "4.9 kB"]
    lines = table_lines(capsys, monkeypatch, 60, row)
    assert max(map(len, lines)) <= 60
    assert len(lines) > 3
    assert all(word in line for word in ("fox", "2026-11-28") for line in lines[2:3])
    words = " ".join(lines[2:]).split()
    assert sorted(words) == sorted(" ".join(row).split())


def test_a_table_breaks_long_cells_before_short_ones(capsys, monkeypatch):
    """A name and a count stay whole, even if a path beside them has to be cut."""
    row = ["fox", "/home/" + "x" * 80, "unfinished, 4 of 6", "a b c"]
    lines = table_lines(capsys, monkeypatch, 80, row)
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith(" fox  /home/x")
    assert lines[2].endswith("  unfinished, 4 of 6  a b c")


def test_a_table_cuts_words_only_if_nothing_else_helps(capsys, monkeypatch):
    lines = table_lines(capsys, monkeypatch, 40, ["x" * 64, "2026-11-28"])
    assert max(map(len, lines)) <= 40
    assert "2026-11-28" in lines[2]
    assert "".join(lines[2:]).count("x") == 64


def test_wide_characters_count_twice(capsys, monkeypatch):
    from rich.cells import cell_len

    lines = table_lines(capsys, monkeypatch, 30, ["红狐红狐红狐红狐", "a b c d e f g h i j"], ["x", "y"])
    assert max(map(cell_len, lines)) <= 30
    assert len({cell_len(line.split("a")[0]) for line in lines if "a" in line}) == 1


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 40 columns."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_prose_wraps_between_words_and_a_command_stays_whole(terminal, monkeypatch):
    from unziplora_cli.cli._output import Output

    command = "unziplora models pull stabilityai/stable-diffusion-xl-base-1.0"
    hint = f"Download the base model of this project again: {command}"
    monkeypatch.setattr(sys, "stderr", terminal)
    Output().error(ValueError(), "This is a message of more than forty characters.", hint, 1)
    assert re.sub(r"\x1b\[\d*m", "", terminal.getvalue()).splitlines() == [
        "Error: This is a message of more than",
        "       forty characters.",
        "  -> Download the base model of this",
        "     project again:",
        f"       {command}",
    ]


def test_the_users_token_of_any_length_is_masked(monkeypatch, tmp_path):
    from unziplora_cli.cli._output import without_tokens

    monkeypatch.setenv("HF_TOKEN", "abc")
    assert without_tokens("bad token abc, not abcd") == "bad token ***, not abcd"
    monkeypatch.setenv("HF_TOKEN", "")
    (tmp_path / "token").write_text("short\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    assert without_tokens("https://hub/x?token=other&a=1 'short'") == "https://hub/x?token=***&a=1 '***'"


@pytest.mark.parametrize(
    "program", ["unziplora", ".venv/bin/unziplora", "/home/me/a long folder/bin/unziplora"]
)
def test_a_command_that_ends_a_line_is_printed_unbroken(program, monkeypatch, capsys):
    from rich.console import Console

    from unziplora_cli.cli._output import print_text

    monkeypatch.setenv("COLUMNS", "40")
    command = f'{shlex.quote(program)} combine fox rose --prompt "on a beach"'
    print_text(Console(force_terminal=True), f"Next: {command}")
    assert f"  {command}\n" in capsys.readouterr().out
