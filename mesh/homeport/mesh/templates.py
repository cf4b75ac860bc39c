"""Templates over what the registry knows: sandboxed Jinja, and the sources that its functions draw from.

A template asks for what it needs by using it: the first rendering finds out what that is, and it is rendered again as
long as something it used was not known yet. What it no longer uses is no longer followed.

    services()         every service, each with .name and .tags
    service("web")     its available instances; instances("web"): all of them, whatever their status
    key("a/b")         a key's value; key("a/b", "x") if it may be absent
    keys("a/")         those directly under it, as {name: value}; tree("a/"): all under it
    env("HOME")        a variable of the environment; env("HOME", "x") if it may be absent
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeVar

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from homeport.client import Client, HomeportError, Instance, InvalidArgument, LimitExceeded
from homeport.mesh.following import Changed, Followed, FollowedKeys, FollowedService, FollowedServices

SOURCES_MAX: Final = 4096  # services and keys of one template: each is a watch at the registry
T = TypeVar("T", bound=Followed)


class NotYet(HomeportError):
    """The template cannot be rendered as things are; the message says what it lacks."""

    code = "not_yet"


class Named(NamedTuple):
    """A service as templates see it in the list of all."""

    name: str
    tags: tuple[str, ...]


class Sources:
    """What templates have used, kept current."""

    def __init__(self, client: Client, changed: Changed, environ: Mapping[str, str]) -> None:
        self._client = client
        self._changed = changed
        self._environ = environ
        self._followed: dict[tuple[str, str], Followed] = {}
        self._used: dict[tuple[str, str], Followed] = {}

    def close(self) -> None:
        for followed in self._followed.values():
            followed.close()
        self._followed.clear()

    def begin(self) -> None:
        """Forget what was used."""
        self._used = {}

    @property
    def complete(self) -> bool:
        """Whether all that was used since `begin` is known.

        Raises:
            HomeportError: some of it cannot be.
        """
        for followed in self._used.values():
            if followed.error is not None:
                raise followed.error
        return all(followed.known for followed in self._used.values())

    def finish(self) -> None:
        """Follow no longer what was not used since `begin`, which must be all that is used: no rendering failed."""
        for key in [key for key in self._followed if key not in self._used]:
            self._followed.pop(key).close()

    @property
    def functions(self) -> dict[str, Callable[..., object]]:
        """What templates may call."""
        return {
            "services": self._services,
            "service": self._service,
            "instances": self._instances,
            "key": self._key,
            "keys": self._keys,
            "tree": self._tree,
            "env": self._env,
        }

    def _services(self) -> list[Named]:
        followed = self._use("services", "", lambda: FollowedServices(self._client, self._changed))
        return [Named(name, tags) for name, tags in sorted(followed.services.items())]

    def _instances(self, name: str) -> list[Instance]:
        return self._use("service", name, lambda: FollowedService(self._client, name, self._changed)).instances

    def _service(self, name: str) -> list[Instance]:
        return [instance for instance in self._instances(name) if instance.available]

    def _key(self, key: str, default: str | None = None) -> str:
        followed = self._use("key", key, lambda: FollowedKeys(self._client, key, self._changed, prefix=False))
        entry = followed.entries.get(key.encode())
        if entry is not None:
            return _text(entry.value)
        if default is None and followed.known:
            raise NotYet(f"there is no key {key!r}; write it, or give it a default: key({key!r}, '...')")
        return default or ""

    def _tree(self, prefix: str) -> dict[str, str]:
        followed = self._use("tree", prefix, lambda: FollowedKeys(self._client, prefix, self._changed, prefix=True))
        skipped = len(prefix.encode())
        return {_text(key[skipped:]): _text(entry.value) for key, entry in sorted(followed.entries.items())}

    def _keys(self, prefix: str) -> dict[str, str]:
        return {name: value for name, value in self._tree(prefix).items() if name and "/" not in name}

    def _env(self, name: str, default: str | None = None) -> str:
        value = self._environ.get(name, default)
        if value is None:
            raise NotYet(f"there is no {name} in the environment; set it, or give it a default: env({name!r}, '...')")
        return value

    def _use(self, kind: str, name: str, follow: Callable[[], T]) -> T:
        key = (kind, name)
        followed = self._followed.get(key)
        if followed is None:
            if len(self._followed) >= SOURCES_MAX:
                raise LimitExceeded(f"more than {SOURCES_MAX} services and keys in templates", allowed=SOURCES_MAX)
            followed = self._followed[key] = follow()
        self._used[key] = followed
        return followed  # type: ignore[return-value]  # `kind` decides which it is


class Template:
    """One template's text, ready to be rendered.

    Raises:
        InvalidArgument: it is none; the message says in which line.
    """

    def __init__(self, name: str, text: str, functions: Mapping[str, Callable[..., object]]) -> None:
        self.name = name
        environment = ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
        )
        environment.globals.update(functions)
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise InvalidArgument(f"{name}, line {error.lineno}: {error.message}") from None

    def render(self) -> bytes:
        """What it comes to now.

        Raises:
            NotYet: it uses something that is not there.
            HomeportError: it cannot be carried out.
        """
        try:
            return self._template.render().encode(errors="surrogateescape")
        except HomeportError:
            raise
        except Exception as error:  # a template's mistake, whatever it is
            raise NotYet(f"{self.name}: {type(error).__name__}: {error}") from error


def _text(value: bytes) -> str:
    """A value as text, from which the same bytes are written again, whatever they are."""
    return value.decode(errors="surrogateescape")
