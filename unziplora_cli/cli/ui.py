"""ui: the same in a browser, served by this machine."""

from typing import TYPE_CHECKING, Annotated

import typer

from unziplora_cli import preferences
from unziplora_cli.cli._errors import describe

if TYPE_CHECKING:
    from unziplora_cli.cli._output import Session


def ui(
    ctx: typer.Context,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's own need --auth.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="USER:PASSWORD",
            envvar="UNZIPLORA_UI_AUTH",
            help="Ask for a user and a password.",
            show_envvar=True,
        ),
    ] = None,
    open_page: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open", help="Open the page in the browser; default: your preference, else open."
        ),
    ] = None,
) -> None:
    """Train, generate and manage projects on a page in the browser.

    The page runs on this machine and loads nothing from others. Ctrl-C ends it; a running training is kept
    and can be resumed.
    """
    from unziplora_cli.ui.server import serve

    session: Session = ctx.obj

    def ready(address: str) -> None:
        session.output.message(f"The page: {address} (Ctrl-C ends it)")
        session.output.result({"address": address})

    serve(
        session.store(),
        describe,
        host=host,
        port=port,
        auth=auth,
        offline=session.offline,
        ready=ready,
        open_page=preferences.chosen().get("open", True) if open_page is None else open_page,
    )
