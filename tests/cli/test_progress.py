"""The progress line on a terminal, and the lines without one."""

import io
import re
import sys
from types import SimpleNamespace

import pytest
import typer

from unziplora_cli import events as common
from unziplora_cli.cli import _output
from unziplora_cli.cli._options import find_base
from unziplora_cli.cli._output import Output, ProgressDisplay
from unziplora_cli.errors import Remedy
from unziplora_cli.events import RemainingTime, format_left
from unziplora_cli.training import events

ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def on_screen(text: str) -> list[str]:
    """The lines that were ever on a terminal, without control sequences and trailing blanks."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", ANSI.sub("", text))]


class Screen(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("color", [True, False])
def test_the_bar_fits_into_80_columns(monkeypatch, color):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not color:
        monkeypatch.setenv("NO_COLOR", "1")
    name = "a-project-with-quite-a-long-name-as-files-from-cameras-have-them"
    with _output.ProgressDisplay(Output(), name) as display:
        display.event(
            events.Phase("encode prompts", "a monadikos fox in watercolor style on a beach in the snow")
        )
        for step in (1, 600):
            event = events.StepDone(
                step, 600, "separate", 0.123, 0.1, 0.2, 1.0, (1e-4,) * 3, 12.34, 23_456_000_000
            )
            display.event(event)
            display.bar.update(display.bar.task_ids[-1], left="2 h 34 min left")
            display.bar.refresh()
        display.event(events.ColumnsChosen(600, 12345, 12345, 1234, 123456))
        display.event(events.Notice("word " * 40))
    lines = on_screen(screen.getvalue())
    assert max(map(len, lines)) <= 80
    shown = next(line for line in lines if "600/600" in line)
    assert "loss 0.123" in shown
    assert "12.34 s/step" in shown
    assert shown.endswith("12.34 s/step 2 h 34 min left"), "on one line"
    assert ("\x1b[3" in screen.getvalue()) == color


def make_screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal of 80 columns, from now on; not as a fixture, since pytest replaces stderr after those."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return screen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time of the display, which tests set."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(_output, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def last_line(screen: Screen, display: ProgressDisplay) -> str:
    display.bar.refresh()
    return on_screen(screen.getvalue())[-1]


@pytest.mark.parametrize("phase", [None, "load U-Net", "finish"])
def test_a_phase_without_steps_moves_by_itself(monkeypatch, clock, phase):
    screen = make_screen(monkeypatch)
    with ProgressDisplay(Output(), "fox") as display:
        if phase is not None:
            display.event(common.Phase(phase, "mini"))
        clock.now += 7.0
        first = last_line(screen, display)
        clock.now += 1.1
        second = last_line(screen, display)
    assert (phase or "start") in first
    assert first.endswith(" 7 s")
    assert second.endswith(" 8 s")


def test_the_demo_shows_the_part_and_the_whole(monkeypatch, clock):
    screen = make_screen(monkeypatch)
    with ProgressDisplay(Output(), "demo") as display:
        display.event(common.Part(0.0, 0.25))
        display.event(common.Phase("destyle", "8 images"))
        for number in range(11):
            display.event(common.Progress("destyle", number, 10))
            clock.now += 1.0
        display.event(common.Part(0.25, 1.0))
        display.event(common.Phase("generate"))
        display.event(common.Progress("generate", 1, 3))
        display.bar.refresh()
        whole, part = on_screen(screen.getvalue())[-2:]
    assert "demo" in whole
    assert "50% of all" in whole  # 0.25 + 0.75 / 3
    assert whole.endswith("s left")
    assert "generate" in part
    assert "1/3" in part


def test_each_remedy_of_a_notice_is_a_line_of_its_own(monkeypatch, clock):
    screen = make_screen(monkeypatch)
    remedies = (
        Remedy("See what it knows", "models show", ("mini",)),
        Remedy("For real images, train SDXL on a GPU", settings={"base": "sdxl"}),
    )
    with ProgressDisplay(Output(), "fox") as display:
        display.event(common.Notice("mini is not sure what fox.png shows.", remedies))
    lines = on_screen(screen.getvalue())
    assert "  -> See what it knows: unziplora models show mini" in lines
    assert "  -> For real images, train SDXL on a GPU: --base sdxl" in lines


@pytest.mark.parametrize("verbose", [False, True])
def test_counts_of_columns_are_shown_on_a_terminal_only_if_asked_for(monkeypatch, clock, verbose):
    screen, output = make_screen(monkeypatch), Output()
    output.verbose = verbose
    with ProgressDisplay(output, "fox") as display:
        display.event(events.ColumnsChosen(6, 5, 5, 1, 20))
    assert ("columns chosen" in screen.getvalue()) == verbose


@pytest.mark.parametrize("question", ["ask", "confirm"])
def test_ctrl_c_ends_the_line_of_a_question(monkeypatch, question):
    screen = make_screen(monkeypatch)

    def interrupt() -> str:
        raise KeyboardInterrupt

    terminal = SimpleNamespace(isatty=lambda: True, readline=interrupt)
    monkeypatch.setattr(sys, "stdin", terminal)
    output, remedy = Output(), Remedy(settings={"yes": True})
    with pytest.raises(typer.Abort):
        output.ask("Which?") if question == "ask" else output.confirm("Go on?", instead=remedy)
    output.error(typer.Abort(), "Interrupted.", "", 130)
    assert on_screen(screen.getvalue())[-2:] == ["Error: Interrupted.", ""]


def test_finding_a_base_shows_a_moving_line(monkeypatch):
    screen = make_screen(monkeypatch)
    monkeypatch.setattr(
        "unziplora_cli.sdxl.base.resolve_base", lambda *_, **__: (screen.write("<torch>"), None)
    )
    find_base(_output.Session(), "mini")
    assert "start" in ANSI.sub("", screen.getvalue()).split("<torch>")[0]


def test_without_a_terminal_lines_come_every_15_seconds(capsys, clock):
    with ProgressDisplay(Output(), "fox") as display:
        for number in range(40):
            display.event(common.Progress("destyle", number, 50))
            clock.now += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["fox: destyle 16/50", "fox: destyle 31/50"]
    assert lines[1].endswith(", 20 s left")


def test_the_remaining_time_of_equal_steps_is_exact():
    remaining = RemainingTime()
    for step in range(1, 101):
        left = remaining.update(step, 100, 50.0 + 0.7 * step)
        assert left is None if step < 4 else left == pytest.approx(0.7 * (100 - step))


def test_the_remaining_time_does_not_jump():
    """Steps of different phases, a pause for validation, and a busy machine: it hardly ever grows."""
    remaining, now, shown = RemainingTime(), 0.0, []
    for step in range(1, 501):
        slow = 2.0 if step % 50 < 7 else 1.0
        now += 0.25 * slow * (1.6 if 200 < step < 220 else 1.0) + (4.0 if step % 100 == 0 else 0.0)
        left = remaining.update(step, 500, now)
        if left is not None:
            shown.append(left)
    growth = [max(shown[i : i + 20]) / left for i, left in enumerate(shown[:-20])]
    assert max(growth) < 1.25
    assert shown[-1] == 0.0
    total = shown[0]
    assert total == pytest.approx(now, rel=0.7)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.0, "0 s left"),
        (31.0, "35 s left"),
        (90.0, "90 s left"),
        (91.0, "2 min left"),
        (3541.0, "1 h 0 min left"),
        (7500.0, "2 h 5 min left"),
    ],
)
def test_remaining_time_is_rounded_up(seconds, text):
    assert format_left(seconds) == text
