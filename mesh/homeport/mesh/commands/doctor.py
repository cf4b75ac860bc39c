"""`homeport doctor`: looks at what usually goes wrong, and says what to do about it."""

from __future__ import annotations

from pathlib import Path

import click

from homeport.mesh.commands.options import default_data_dir, json_option, registry_option
from homeport.mesh.commands.output import print_json, print_table
from homeport.mesh.commands.running import ExitCode, run_and_exit
from homeport.mesh.examination import examine


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The data directory to look at [default: the one of `homeport serve`].",
)
@click.option("--http", metavar="HOST:PORT", default="127.0.0.1:8500", show_default=True, help="Its HTTP API.")
@click.option("--dns", metavar="HOST:PORT", default="127.0.0.1:8600", show_default=True, help="Its DNS front.")
@registry_option
@json_option
def doctor(data_dir: Path | None, http: str, dns: str, registry: str, as_json: bool) -> None:
    """Look at ports, clocks, files, limits, versions and whether the registry can be reached; say what is wrong.

    Exit code 1 if anything is wrong; what is only worth knowing is a warning.
    """

    async def work() -> int:
        findings = await examine(registry.split(","), http, dns, data_dir or default_data_dir())
        if as_json:
            print_json([finding._asdict() for finding in findings])
        else:
            print_table(
                ["", "what", "found", "what to do"],
                [[each.verdict, each.what, each.found, each.advice] for each in findings],
            )
        return ExitCode.NO if any(each.verdict == "wrong" for each in findings) else ExitCode.DONE

    run_and_exit(work())
