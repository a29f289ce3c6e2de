"""What every command gets through `ctx.obj`."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from unziplora_cli import paths
from unziplora_cli.cli._output import Output
from unziplora_cli.errors import ModelError

if TYPE_CHECKING:
    from unziplora_cli.projects.store import ProjectStore


@dataclass
class Session:
    """One run of the program: its output, its home and whether it may use the network."""

    output: Output = field(default_factory=Output)
    home: Path | None = None
    offline: bool = False
    typed: tuple[str, ...] = ()
    """The words of the command line."""

    def store(self) -> "ProjectStore":
        """The projects of the chosen home."""
        from unziplora_cli.projects.store import ProjectStore

        return ProjectStore(paths.home(self.home))

    def use_network(self, purpose: str) -> None:
        """Let the hub's library, which is not imported yet, use the network; raises ModelError if offline."""
        if self.offline:
            raise ModelError(
                f"{purpose} needs the network.", hint="Leave out --offline and unset HF_HUB_OFFLINE."
            )
        os.environ["HF_HUB_OFFLINE"] = "0"
        if self.output.quiet:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
            os.environ["HF_HUB_VERBOSITY"] = "error"
