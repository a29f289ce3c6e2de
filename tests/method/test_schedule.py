import json
from pathlib import Path

from unziplora_cli.method.schedule import Action, Schedule

META = json.loads((Path(__file__).parents[1] / "golden" / "golden_a" / "meta.json").read_text())


def test_separated_steps_are_the_recorded_ones() -> None:
    schedule = Schedule(steps=18, windows=3)
    for recorded in META["schedule"]:
        assert schedule.separated(recorded["step"]) == recorded["masks_active_in_forward"]
        assert schedule.separated(recorded["step"]) == recorded["similarity_in_loss"]


def test_separated_follows_from_the_actions_taken() -> None:
    for steps in range(1, 25):
        for windows in range(1, 6):
            for importance_steps in range(1, 6):
                schedule = Schedule(steps, windows, importance_steps)
                separated = False
                for step in range(steps):
                    assert schedule.separated(step) == separated
                    match schedule.action(step):
                        case Action.OPEN:
                            separated = False
                        case Action.SELECT:
                            separated = True


def test_selects_is_whether_columns_are_ever_selected() -> None:
    for steps in range(1, 25):
        for windows in range(1, 6):
            for importance_steps in range(1, 6):
                schedule = Schedule(steps, windows, importance_steps)
                selected = any(schedule.action(step) is Action.SELECT for step in range(steps))
                assert schedule.selects == selected


def test_the_paper_selects_three_times_in_600_steps() -> None:
    schedule = Schedule(600, 3)
    assert [step for step in range(600) if schedule.action(step) is Action.SELECT] == [1, 201, 401]


def test_without_column_separation_there_are_no_actions() -> None:
    schedule = Schedule(20, 3, enabled=False)
    assert {schedule.action(step) for step in range(20)} == {Action.NONE}
    assert not any(schedule.separated(step) for step in range(20))
    assert schedule.phase(5) == "joint"
