"""The first screen, `unziplora --help`, in plain text: Rich takes longer to load than all the rest."""

from typing import Any

from typer.core import TyperGroup


class Program(TyperGroup):
    """The top of the command tree; each command below it has Typer's own help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help with Typer's plain formatter."""
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands under the heading of their help panel."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                heading = getattr(command, "rich_help_panel", None)
                text = command.get_short_help_str(limit=80)
                panels.setdefault(heading if isinstance(heading, str) else "Commands", []).append(
                    (name, text)
                )
        for heading, rows in panels.items():
            with formatter.section(heading):
                formatter.write_dl(rows)
