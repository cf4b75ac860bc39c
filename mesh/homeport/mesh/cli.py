"""`homeport`: the command line. One table of commands, each loaded only when it runs, so that `--help` answers at once.

Every option is also a key of `--config homeport.toml` and an environment variable, named as it is written: `http` of
`[serve]` is `HOMEPORT_SERVE_HTTP`. The key `registry` at the top, and `HOMEPORT_REGISTRY`, hold for every command.
`[sidecar.timeouts]` and `[sidecar.limits]` hold the bounds of `--timeout` and `--limit`, and so for `run`.
`[[service]]` tables (`name`, and some of `endpoints`, `tcp`, `http`, `retries`, `tls` ...) say where a service is that
registers nowhere, which local ports stand for it, and how it is called; `[[tcp]]` and `[[http]]` tables (`listen`,
`service`) are local ports too, for `sidecar` and `run`; `[[routing]]` tables are documents of routes, each with its
`service`.
Exit codes: 0 done, 1 the answer is no, 2 usage, 3 the registry cannot be reached.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Collection
from typing import Any, Final, NamedTuple, cast

import click


class Entry(NamedTuple):
    """Where a command lives ("module:attribute"), its line in the help, and examples for its own help."""

    target: str
    help: str
    examples: tuple[str, ...] = ()


COMMANDS: Final[dict[str, Entry]] = {
    "serve": Entry(
        "homeport.mesh.commands.serve:serve",
        "Run a registry.",
        (
            "homeport serve",
            "homeport serve --memory --http 127.0.0.1:0",
            "homeport serve --store etcd://10.0.0.1:2379,10.0.0.2:2379",
        ),
    ),
    "sidecar": Entry(
        "homeport.mesh.commands.sidecar:sidecar",
        "Run a sidecar proxy beside whatever uses it.",
        (
            "homeport sidecar",
            "homeport sidecar --static db=10.0.0.5:5432 --workers 2",
            "homeport sidecar --takeover",
        ),
    ),
    "run": Entry(
        "homeport.mesh.commands.run:run",
        "Run an app with its own sidecar, registered while it is well.",
        (
            "homeport run --name orders --port 8080 -- python app.py",
            "homeport run --name orders --port 8080 --check-path /healthz -- gunicorn app:app",
        ),
    ),
    "services": Entry(
        "homeport.mesh.commands.listings:services",
        "List the services.",
        (
            "homeport services",
            "homeport services --json",
        ),
    ),
    "instances": Entry(
        "homeport.mesh.commands.listings:instances",
        "List the instances of a service.",
        (
            "homeport instances orders",
            "homeport instances orders --passing --json",
        ),
    ),
    "register": Entry(
        "homeport.mesh.commands.registering:register",
        "Register an instance by hand.",
        (
            "homeport register db --address 10.0.0.5 --port 5432 --check-tcp 10.0.0.5:5432",
            "homeport register batch --port 9000 --ttl 10",
        ),
    ),
    "deregister": Entry(
        "homeport.mesh.commands.registering:deregister",
        "Deregister an instance.",
        ("homeport deregister db-10.0.0.5-5432",),
    ),
    "explain": Entry(
        "homeport.mesh.commands.explain:explain",
        "Say why instances are in or out of rotation.",
        (
            "homeport explain orders",
            "homeport explain orders orders-web1-8080",
        ),
    ),
    "watch": Entry(
        "homeport.mesh.commands.watch:watch",
        "Follow the instances of a service, or run a command on change.",
        (
            "homeport watch orders",
            "homeport watch orders --passing -- ./on-change.sh",
        ),
    ),
    "stats": Entry(
        "homeport.mesh.commands.stats:stats",
        "Show the registry's numbers.",
        (
            "homeport stats",
            "homeport stats --json",
        ),
    ),
    "top": Entry(
        "homeport.mesh.commands.top:top",
        "Watch what goes through sidecars, live.",
        (
            "homeport top",
            "homeport top --admin 127.0.0.1:15000,10.0.0.7:15000 --once --json",
        ),
    ),
    "kv": Entry(
        "homeport.mesh.commands.kv:kv",
        "Read and write the key-value store.",
        (
            "homeport kv put config/colour blue",
            "homeport kv get config/colour",
            "homeport kv watch config/ --prefix",
        ),
    ),
    "routes": Entry(
        "homeport.mesh.commands.routes:routes",
        "Change where requests to a service go.",
        (
            "homeport routes check orders.toml",
            "homeport routes put orders orders.toml",
            "homeport routes get orders",
        ),
    ),
    "render": Entry(
        "homeport.mesh.commands.render:render",
        "Write files from templates, again on every change.",
        (
            'homeport render haproxy.cfg.j2:haproxy.cfg:"systemctl reload haproxy"',
            "homeport render --once motd.j2:motd",
        ),
    ),
    "env": Entry(
        "homeport.mesh.commands.env:env",
        "Run a command with keys in its environment.",
        ("homeport env config/orders -- python app.py",),
    ),
    "lock": Entry(
        "homeport.mesh.commands.lock:lock",
        "Run a command while holding a lock.",
        (
            "homeport lock jobs/nightly -- ./nightly.sh",
            "homeport lock jobs/nightly --wait 0 --ttl 30 -- ./nightly.sh",
        ),
    ),
    "backup": Entry(
        "homeport.mesh.commands.backups:backup",
        "Copy everything a running registry holds to a file.",
        ("homeport backup monday.homeport",),
    ),
    "restore": Entry(
        "homeport.mesh.commands.backups:restore",
        "Put a backup in the place of everything it holds.",
        ("homeport restore monday.homeport",),
    ),
    "migrate": Entry(
        "homeport.mesh.commands.migrate:migrate",
        "Copy a whole registry into etcd, or back.",
        ("homeport migrate ~/.local/state/homeport etcd://10.0.0.1:2379,10.0.0.2:2379",),
    ),
    "demo": Entry(
        "homeport.mesh.commands.demo:demo",
        "Run a site of five services under load while things break.",
        (
            "homeport demo",
            "homeport demo --seconds 20 --seed 7",
        ),
    ),
    "doctor": Entry(
        "homeport.mesh.commands.doctor:doctor",
        "Find what is wrong on this machine, and say what to do.",
        (
            "homeport doctor",
            "homeport doctor --registry 10.0.0.5:8300",
        ),
    ),
    "bench": Entry(
        "homeport.mesh.commands.bench:bench",
        "Measure lookups and proxying on this machine.",
        (
            "homeport bench",
            "homeport bench --seconds 2 --json",
        ),
    ),
    "completion": Entry(
        "homeport.mesh.commands.completion:completion",
        "Print what makes a shell complete commands.",
        (
            'eval "$(homeport completion bash)"',
            "homeport completion fish > ~/.config/fish/completions/homeport.fish",
        ),
    ),
}

# Keys that may stand at the top of the file, and then hold for every command that has the option.
_SHARED_KEYS: Final = ("registry",)
_OWN_KEYS: Final = ("log-level",)  # options of `homeport` itself
_ACTIONS: Final = {
    "kv": ("get", "put", "delete", "list", "watch", "export", "import"),
    "routes": ("get", "put", "delete"),
}
_STATIC_COMMANDS: Final = ("sidecar", "run")
_OF_A_SERVICE: Final = (
    "endpoints, tcp, http, or how it is called (per_try_s, retries, outliers, circuit, balancing, ...)"
)

CONFIG: Final = "homeport.config"  # where a context keeps the file's path and its signature when it was read,
_ARGUMENTS: Final = "homeport.arguments"  # the whole command line,
_REST: Final = "homeport.rest"  # and what of it is the command's


class CommandTable(click.Group):
    """The group whose commands are `COMMANDS`."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command = cast("click.Command", getattr(importlib.import_module(module), attribute))
        if entry.examples:  # \b keeps the lines as they are
            command.epilog = "\b\n" + "\n".join(["Examples:", *(f"  {each}" for each in entry.examples)])
        _name_variables(command, f"HOMEPORT_{cmd_name.upper()}")
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}.{did_you_mean(args[0], COMMANDS)}")
        name, command, rest = super().resolve_command(ctx, args)
        ctx.meta[_REST] = tuple(rest)
        if name is not None and command is not None:
            _take_keys(ctx, command, (ctx.default_map or {}).get(name, {}), f"[{name}]")
        return name, command, rest


def did_you_mean(word: str, commands: Collection[str]) -> str:
    """What to say of a command that there is not: the one that looks like it, or else all there are."""
    import difflib  # only for a mistake

    close = difflib.get_close_matches(word, commands, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" There are: {', '.join(commands)}."


def _as_written(command: click.Command) -> dict[str, click.Option]:
    """The options of a command by what people write, with underscores for dashes: `--from` may be `start` within."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    return {max(option.opts, key=len).lstrip("-").replace("-", "_"): option for option in options}


def _name_variables(command: click.Command, prefix: str) -> None:
    """Have each option's variable be named as it is written; click names it by its name within."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            _name_variables(inner, f"{prefix}_{name.upper()}")
    for written, option in _as_written(command).items():
        if option.envvar is None and option.name != written:
            option.envvar = f"{prefix}_{written.upper()}"


def _take_keys(ctx: click.Context, command: click.Command, table: dict[str, Any], where: str) -> None:
    """Turn keys, which are written like options, into click's names.

    A key that is no option is a mistake that would otherwise go unnoticed.
    """
    written = _as_written(command)
    plural = {option.name for option in written.values() if option.multiple}  # `[sidecar.limits]`: tables, or lists
    inner = command.commands if isinstance(command, click.Group) else {}
    for key, value in list(table.items()):
        if key in inner and isinstance(value, dict):
            _take_keys(ctx, inner[key], value, f"{where[:-1]}.{key}]")
        elif key in written:
            table[str(written[key].name)] = table.pop(key)
        elif key not in plural and key not in _SHARED_KEYS:
            known = sorted(str(name).replace("_", "-") for name in {*written, *plural, *inner})
            ctx.fail(f"{where} has no key {key.replace('_', '-')!r}; it may have: {', '.join(known) or 'none'}.")


def signature(found: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file does."""
    return found.st_mtime_ns, found.st_size, found.st_ino


def _load_config(ctx: click.Context, _param: click.Parameter, path: str | None) -> str | None:
    if path is None:
        return None
    import tomllib

    try:
        with open(path, "rb") as file:
            read = signature(os.fstat(file.fileno()))
            config = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        ctx.fail(f"--config {path}: {error}")
    ctx.default_map = _default_map(ctx, config)
    ctx.meta[CONFIG] = (path, read)
    return path


def _default_map(ctx: click.Context, config: dict[str, Any]) -> dict[str, Any]:
    """What the file says, as click's defaults: command name -> option name -> value."""
    shared = {key: config.pop(key) for key in _SHARED_KEYS if key in config}
    own = {key.replace("-", "_"): config.pop(key) for key in _OWN_KEYS if key in config}
    listed = {
        "static": [],
        "service": [],
        "tcp": [_local_port(ctx, "tcp", table) for table in config.pop("tcp", [])],
        "http": [_local_port(ctx, "http", table) for table in config.pop("http", [])],
        "routes": [_routing(ctx, table) for table in config.pop("routing", [])],
    }
    for table in config.pop("service", []):
        _take_service(ctx, table, listed)
    for name, table in config.items():
        if name not in COMMANDS or not isinstance(table, dict):
            keys = ", ".join((*_SHARED_KEYS, *_OWN_KEYS))
            ctx.fail(f"--config: {name!r} is neither a command nor one of {keys}, service, tcp, http, routing.")
    defaults = {name: {**shared, **_option_names(config.get(name, {}))} for name in COMMANDS}
    if shared:
        for command, actions in _ACTIONS.items():
            for action in actions:
                defaults[command][action] = {**shared, **defaults[command].get(action, {})}
    for name in _STATIC_COMMANDS:
        for key in ("limits", "timeouts"):  # tables in the file, repeatable options on the command line
            if isinstance(table := defaults[name].get(key), dict):
                defaults[name][key] = [f"{bound.replace('_', '-')}={value}" for bound, value in table.items()]
        for key, values in listed.items():
            if values:
                defaults[name][key] = [*values, *defaults[name].get(key, [])]
    return defaults | own


def _take_service(ctx: click.Context, table: Any, listed: dict[str, list[str]]) -> None:
    """Add what a [[service]] says to the options that say the same."""
    import json  # only where there are services

    match table:
        case {"name": str(name), **rest} if rest:
            pass
        case _:
            raise click.UsageError(f"--config: a [[service]] has a name, and at least one of {_OF_A_SERVICE}.", ctx)
    where = f"--config: [[service]] {name!r}"
    endpoints = rest.pop("endpoints", None)
    if endpoints is not None:
        if not isinstance(endpoints, list) or not endpoints or name == "*":
            raise click.UsageError(f'{where}: endpoints = ["host:port", ...], and of one service.', ctx)
        listed["static"].append(f"{name}={','.join(map(str, endpoints))}")
    for kind in ("tcp", "http"):
        listen = rest.pop(kind, None)
        if listen is not None:
            if not isinstance(listen, str) or name == "*":
                raise click.UsageError(f'{where}: {kind} = "host:port", and of one service.', ctx)
            listed[kind].append(f"{listen}={name}")
    if rest:
        listed["service"].append(f"{name}={json.dumps(rest, default=str)}")


def _local_port(ctx: click.Context, kind: str, table: Any) -> str:
    match table:
        case {"listen": str(listen), "service": str(service), **rest} if not rest:
            return f"{listen}={service}"
        case _:
            raise click.UsageError(f'--config: a [[{kind}]] has exactly listen = "host:port" and a service.', ctx)


def _routing(ctx: click.Context, table: Any) -> str:
    import json  # only where there are routes

    match table:
        case {"service": str(service), **document}:
            return f"{service}={json.dumps(document, default=str)}"
        case _:
            raise click.UsageError("--config: a [[routing]] has a service, and what a document of routes has.", ctx)


def _option_names(table: dict[str, Any]) -> dict[str, Any]:
    """TOML keys are written like options, with dashes; click knows them by underscores."""
    return {
        key.replace("-", "_"): _option_names(value) if isinstance(value, dict) else value
        for key, value in table.items()
    }


def reparsed(context: click.Context) -> dict[str, Any]:
    """The parameters of a command that runs, from the same command line and the file as it is now.

    Raises:
        click.ClickException: the file has a mistake.
    """
    root = context.find_root()
    fresh = root.command.make_context(
        root.info_name, list(root.meta[_ARGUMENTS]), auto_envvar_prefix=root.auto_envvar_prefix
    )
    rest = list(context.meta[_REST])
    assert isinstance(fresh.command, click.Group)
    fresh.command.resolve_command(fresh, [str(context.info_name), *rest])  # which refuses unknown keys
    return context.command.make_context(context.info_name, rest, parent=fresh).params


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
