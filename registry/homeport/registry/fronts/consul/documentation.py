"""What docs/consul.md holds of the table, and of the headers that requests and answers have beside it, as Markdown."""

from __future__ import annotations

from typing import Final

import msgspec

from homeport.registry.fronts.consul.calls import Parameter, Support
from homeport.registry.fronts.consul.table import EVERY, TABLE


class Header(msgspec.Struct, frozen=True):
    """A header that Consul knows; `sent`: of answers, else of requests. Refused: it is not sent, or not looked at."""

    name: str
    sent: bool
    support: Support = "supported"
    note: str = ""


HEADERS: Final = (
    Header("X-Consul-Token", False, note="`Authorization: Bearer` and `?token` do the same; the query counts first"),
    Header("Authorization", False, note="the scheme Bearer; another is not looked at"),
    Header("Cache-Control", False, "differs", "nothing is cached, so every answer is fresh enough"),
    Header("X-Forwarded-For", False, "refused", "anybody can send it; `near=_ip` is the address of the connection"),
    Header("Accept-Encoding", False, "refused", "answers are not compressed"),
    Header("Expect", False, note="100-continue: too long a body is refused before it is sent"),
    Header("X-Consul-Index", True, note="on every read that can block: of its own resource, never 0"),
    Header("X-Consul-ContentHash", True, note="where `?hash` was asked for, and on `/v1/agent/service/…`"),
    Header("X-Consul-KnownLeader", True, note="false while nothing can be written"),
    Header("X-Consul-LastContact", True, note="0: answers are never stale"),
    Header("X-Consul-Effective-Consistency", True, note="the one that was asked for, leader by default"),
    Header("X-Consul-Default-ACL-Policy", True, "refused", "there are no ACLs"),
    Header("X-Consul-Query-Backend", True, "refused", "there is one way to answer"),
    Header("X-Consul-Translate-Addresses", True, "refused", "addresses are as registered"),
    Header("X-Cache", True, "refused", "nothing is cached"),
    Header("Age", True, "refused", "nothing is cached"),
    Header("Retry-After", True, note="seconds, on 429 and 503"),
    Header("Allow", True, note="the methods of the path, on 405 and on OPTIONS"),
)


def documentation() -> str:
    """The tables: endpoints, their parameters, headers."""
    lines = ["| endpoint | what | |", "|---|---|---|"]
    for row in TABLE:
        method = "" if row.method == "*" else row.method + " "
        what = f"**{row.support}**" if row.support != "refused" else str(row.statuses[0])
        lines.append(f"| `{method}{row.path.replace('{}', '…')}` | {row.summary} | {_noted(what, row.note)} |")
    lines += ["", "| endpoint | parameter | |", "|---|---|---|"]
    for row in TABLE:
        for parameter in row.parameters:
            if parameter not in EVERY:
                lines.append(f"| `{row.name}` | `{parameter.name}` | {_parameter(parameter)} |")
    lines += [f"| every one under `/v1` | `{parameter.name}` | {_parameter(parameter)} |" for parameter in EVERY]
    lines += ["", "| header | of | |", "|---|---|---|"]
    for header in HEADERS:
        of, without = ("answers", "not sent") if header.sent else ("requests", "not looked at")
        what = without if header.support == "refused" else f"**{header.support}**"
        lines.append(f"| `{header.name}` | {of} | {_noted(what, header.note)} |")
    return "\n".join(lines) + "\n"


def _parameter(parameter: Parameter) -> str:
    return _noted("400" if parameter.support == "refused" else f"**{parameter.support}**", parameter.note)


def _noted(what: str, note: str) -> str:
    return f"{what}: {note}" if note else what
