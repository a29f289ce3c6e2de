"""What every command gets through `ctx.obj`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from unziplora_cli import paths
from unziplora_cli.cli.render import Output

if TYPE_CHECKING:
    from unziplora_cli.project.store import ProjectStore


@dataclass
class Session:
    """One run of the program: its output, its home and whether it may use the network."""

    output: Output = field(default_factory=Output)
    home: Path | None = None
    offline: bool = False

    def store(self) -> "ProjectStore":
        """The projects of the chosen home."""
        from unziplora_cli.project.store import ProjectStore

        return ProjectStore(paths.home(self.home))
