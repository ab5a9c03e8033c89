"""The command line: its verbs, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Annotated

import typer
from rich.markup import escape

from unbraid.cli.display import console, errors
from unbraid.cli.doctor import doctor
from unbraid.cli.execution import export, run
from unbraid.cli.networks import compress, disentangle, scan, verdict
from unbraid.cli.studies import bench, demo, reproduce
from unbraid.ground.errors import UnbraidError

INTERRUPTED = 130  # as shells count a command that Ctrl-C ended

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Trained networks as matrix product operators and quantum circuits, and what they cost.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from unbraid.ground.manifest import versions

        console.print(", ".join(f"{name} {version}" for name, version in versions().items()), highlight=False)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """Read options that stand before a verb."""


for verb in (demo, scan, compress, disentangle, run, verdict, export, reproduce, bench, doctor):
    app.command()(verb)


def main() -> None:
    """Entry point: one clear message and an exit code that is not 0 for everything that can go wrong."""
    code: object = None
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # a batch system's way to interrupt: workers stop, too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
    except UnbraidError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        show = getattr(error, "show", None)
        if callable(show):  # a usage error: the command-line library knows how to explain it
            show()
            sys.exit(getattr(error, "exit_code", 2))
        if os.environ.get("UNBRAID_DEBUG"):
            traceback.print_exc()
        _fail(f"Unexpected {type(error).__name__}: {error}\nSet UNBRAID_DEBUG=1 to see where it happened.", 70)
    if code == INTERRUPTED:
        _report("Interrupted.")
        sys.stdout.flush()
        sys.stderr.flush()
        # Python would end by the signal, not with this code, where an extension module had been running Python code.
        os._exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    _report(message)
    sys.exit(code)


def _report(message: str) -> None:
    errors.print(f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True)
