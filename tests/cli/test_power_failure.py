"""What a command has reported survives a power failure: content is flushed before its name, then the folder.

The calls are watched in this process, so that a command takes no longer than otherwise.
"""

import pytest

from tests.faults.order import Disk
from unziplora_cli.projects.unfinished import STATUS  # a note that means nothing once the training ends

SMALL = ("--steps=1", "--width=64", "--height=64", "--device=cpu")
COMMANDS = {
    "content": ("content", "fox", *SMALL),
    "cross": ("cross", "fox", "rose", *SMALL),
    "export": ("export", "fox", "--part=all", "--out={out}"),
    "import": ("import", "{exported}", "--name=new", "--subject=fox", "--style=ink", "--base={base}"),
    "push": ("push", "fox", "me/fox", "--plan", "--out={out}"),
    "report": ("report", "fox", "--out={out}.html"),
    "eval": ("eval", "fox"),
    "rename": ("rename", "fox", "cat"),
    "remove": ("remove", "fox", "--yes"),
    "replace": ("train", "{photo}", "--subject=fox", "--style=ink", "--force", "--checkpoint-every=2"),
    "config": ("config", "set", "base", "mini"),
}


SLOW = ("eval",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in COMMANDS]
)
def test_a_command_flushes_what_it_writes_before_it_reports_it(
    name, two_projects, unziplora, tiny_base, photos, settings
):
    machine = two_projects.parent
    places = {
        "out": machine / "out",
        "exported": machine / "exported",
        "base": tiny_base,
        "photo": photos / "fox.png",
    }
    if name == "import":
        assert unziplora("export", "fox", "--part=all", "--out", places["exported"]).code == 0
    arguments = [argument.format(**places) for argument in COMMANDS[name]]
    with Disk(machine).watched() as disk:
        completed = unziplora(*arguments, *(settings if name == "replace" else ()))
    assert completed.code == 0, completed
    assert disk.names
    assert [problem for problem in disk.unsafe() if STATUS not in problem] == []
    if name == "replace":
        kinds = {path.name for _, path in disk.names}
        assert any(kind.startswith("step-") for kind in kinds), kinds
