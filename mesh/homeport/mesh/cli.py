"""`homeport`: the command line. One table of commands, each loaded only when it runs, so that `--help` answers at once.

Every option is also a key of `--config homeport.toml` and an environment variable: `http` of `[serve]` is
`HOMEPORT_SERVE_HTTP`. The key `registry` at the top of the file, and `HOMEPORT_REGISTRY`, hold for every command.
`[sidecar.timeouts]` and `[sidecar.limits]` hold the bounds of `--timeout` and `--limit`, and so for `run`.
`[[service]]` tables (`name`, `endpoints`) name services that register nowhere, and `[[tcp]]` tables (`listen`,
`service`) local ports that stand for a service, for `sidecar` and `run`.
Exit codes: 0 done, 1 the answer is no, 2 usage, 3 the registry cannot be reached.
"""

from __future__ import annotations

import importlib
from typing import Any, Final, NamedTuple, cast

import click


class Entry(NamedTuple):
    """Where a command lives ("module:attribute") and its line in the help."""

    target: str
    help: str


COMMANDS: Final[dict[str, Entry]] = {
    "serve": Entry("homeport.mesh.commands.serve:serve", "Run a registry."),
    "sidecar": Entry("homeport.mesh.commands.sidecar:sidecar", "Run a sidecar proxy beside whatever uses it."),
    "run": Entry("homeport.mesh.commands.run:run", "Run an app with its own sidecar, registered while it is well."),
    "services": Entry("homeport.mesh.commands.listings:services", "List the services."),
    "instances": Entry("homeport.mesh.commands.listings:instances", "List the instances of a service."),
    "watch": Entry(
        "homeport.mesh.commands.watch:watch", "Follow the instances of a service, or run a command on change."
    ),
    "stats": Entry("homeport.mesh.commands.stats:stats", "Show the registry's numbers."),
    "kv": Entry("homeport.mesh.commands.kv:kv", "Read and write the key-value store."),
    "render": Entry("homeport.mesh.commands.render:render", "Write files from templates, again on every change."),
    "env": Entry("homeport.mesh.commands.env:env", "Run a command with keys in its environment."),
    "backup": Entry("homeport.mesh.commands.backups:backup", "Copy everything a running registry holds to a file."),
    "restore": Entry("homeport.mesh.commands.backups:restore", "Put a backup in the place of everything it holds."),
    "demo": Entry("homeport.mesh.commands.demo:demo", "Run a site of five services under load while things break."),
}

# Keys that may stand at the top of the file, and then hold for every command that has the option.
_SHARED_KEYS: Final = ("registry",)
_STATIC_COMMANDS: Final = ("sidecar", "run")


class CommandTable(click.Group):
    """The group whose commands are `COMMANDS`."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        return cast("click.Command", getattr(importlib.import_module(module), attribute))

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}.{_did_you_mean(args[0])}")
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None:
            _refuse_unknown_keys(ctx, command, (ctx.default_map or {}).get(name, {}), f"[{name}]")
        return name, command, rest


def _did_you_mean(word: str) -> str:
    import difflib  # only for a mistake

    close = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" There are: {', '.join(COMMANDS)}."


def _refuse_unknown_keys(ctx: click.Context, command: click.Command, table: dict[str, Any], where: str) -> None:
    """A key that is no option is a mistake that would otherwise go unnoticed."""
    options = {param.name for param in command.params if isinstance(param, click.Option)}
    inner = command.commands if isinstance(command, click.Group) else {}
    for key, value in table.items():
        if key in inner and isinstance(value, dict):
            _refuse_unknown_keys(ctx, inner[key], value, f"{where[:-1]}.{key}]")
        elif key not in options and key not in _SHARED_KEYS:
            known = sorted(str(name).replace("_", "-") for name in options | set(inner))
            ctx.fail(f"{where} has no key {key.replace('_', '-')!r}; it may have: {', '.join(known) or 'none'}.")


def _load_config(ctx: click.Context, _param: click.Parameter, path: str | None) -> str | None:
    if path is None:
        return None
    import tomllib

    try:
        with open(path, "rb") as file:
            config = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        ctx.fail(f"--config {path}: {error}")
    ctx.default_map = _default_map(ctx, config)
    return path


def _default_map(ctx: click.Context, config: dict[str, Any]) -> dict[str, Any]:
    """What the file says, as click's defaults: command name -> option name -> value."""
    shared = {key: config.pop(key) for key in _SHARED_KEYS if key in config}
    listed = {
        "static": [_static_service(ctx, table) for table in config.pop("service", [])],
        "tcp": [_tcp_port(ctx, table) for table in config.pop("tcp", [])],
    }
    for name, table in config.items():
        if name not in COMMANDS or not isinstance(table, dict):
            ctx.fail(f"--config: {name!r} is neither a command nor one of {', '.join(_SHARED_KEYS)}, service, tcp.")
    defaults = {name: {**shared, **_option_names(config.get(name, {}))} for name in COMMANDS}
    if shared:
        for action in ("get", "put", "delete", "list", "watch", "export", "import"):
            defaults["kv"][action] = {**shared, **defaults["kv"].get(action, {})}
    for name in _STATIC_COMMANDS:
        for key in ("limits", "timeouts"):  # tables in the file, repeatable options on the command line
            if isinstance(table := defaults[name].get(key), dict):
                defaults[name][key] = [f"{bound.replace('_', '-')}={value}" for bound, value in table.items()]
        for key, values in listed.items():
            if values:
                defaults[name][key] = [*values, *defaults[name].get(key, [])]
    return defaults


def _static_service(ctx: click.Context, table: Any) -> str:
    match table:
        case {"name": str(name), "endpoints": [*endpoints], **rest} if not rest:
            return f"{name}={','.join(map(str, endpoints))}"
        case _:
            raise click.UsageError(
                '--config: a [[service]] has exactly a name and endpoints = ["host:port", ...].', ctx
            )


def _tcp_port(ctx: click.Context, table: Any) -> str:
    match table:
        case {"listen": str(listen), "service": str(service), **rest} if not rest:
            return f"{listen}={service}"
        case _:
            raise click.UsageError('--config: a [[tcp]] has exactly listen = "host:port" and a service.', ctx)


def _option_names(table: dict[str, Any]) -> dict[str, Any]:
    """TOML keys are written like options, with dashes; click knows them by underscores."""
    return {
        key.replace("-", "_"): _option_names(value) if isinstance(value, dict) else value
        for key, value in table.items()
    }


@click.group(cls=CommandTable, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_load_config,
    help="Read options from a TOML file: a [command] table each.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    help="What goes to standard error.",
)
@click.version_option(package_name="homeport")
@click.pass_context
def cli(ctx: click.Context, log_level: str) -> None:
    """A service registry you can import, with a sidecar that brings every call to a healthy instance."""
    ctx.obj = log_level


def main() -> None:
    """Run the command line: the console script."""
    cli(prog_name="homeport", auto_envvar_prefix="HOMEPORT")


if __name__ == "__main__":
    main()
