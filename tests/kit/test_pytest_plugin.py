"""The pytest plugin in runs of its own: every framework, fresh for each test, nothing loaded that nobody asked for."""

from __future__ import annotations

import textwrap

import pytest

PLAIN = """
    import asyncio, os, urllib.request

    def test_a_plain_test_has_addresses(homeport_addresses, homeport_registry):
        with urllib.request.urlopen(f"http://{homeport_addresses.http}/v1/status/leader", timeout=30) as answer:
            assert answer.status == 200
        assert homeport_addresses.rpc and homeport_addresses.dns

    def test_consul_s_clients_find_it(homeport_consul):
        assert os.environ["CONSUL_HTTP_ADDR"] == homeport_consul
        request = urllib.request.Request(f"http://{homeport_consul}/v1/kv/a", data=b"1", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        assert urllib.request.urlopen(f"http://{homeport_consul}/v1/kv/a?raw", timeout=30).read() == b"1"

    def test_it_is_fresh_for_every_test(homeport_consul):
        try:
            urllib.request.urlopen(f"http://{homeport_consul}/v1/kv/a?raw", timeout=30)
        except urllib.error.HTTPError as error:
            assert error.code == 404
            error.close()

    def test_other_loops_have_clients(homeport_registry):
        async def main():
            async with homeport_registry.client() as client, client.register("orders", port=1):
                assert len(await client.resolve("orders")) == 1
        asyncio.run(main())
"""

ASYNC = """
    import pytest
    from aiohttp import web

    {marker}

    async def orders(request):
        return web.Response(text="an order")

    async def test_the_registry_is_on_another_loop_and_does_not_mind(homeport_registry):
        async with homeport_registry.client() as client, client.register("orders", port=1):
            assert len(await client.resolve("orders")) == 1

    async def test_the_mesh_is_on_this_loop(homeport_mesh):
        await homeport_mesh.service("orders", orders, instances=2)
        homeport_mesh.kill("orders#1")
        answer = await homeport_mesh.call("orders", "/")
        assert answer.body == b"an order"
        assert homeport_mesh.failed == 0

    {fixture}
    async def shop(homeport_mesh):
        await homeport_mesh.service("shop", orders)
        return homeport_mesh

    async def test_fixtures_may_build_on_it(shop):
        assert (await shop.call("shop")).status == 200
"""


def run(pytester: pytest.Pytester, source: str, *args: str) -> pytest.RunResult:
    pytester.makepyfile(textwrap.dedent(source))
    unset = "ignore:The configuration option"  # pytest-asyncio's, of a run that has no configuration
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", "-W", unset, *args)


def test_plain_tests_have_a_registry_addresses_and_consul_s_variable(pytester: pytest.Pytester) -> None:
    run(pytester, PLAIN, "-p", "no:asyncio", "-p", "no:anyio").assert_outcomes(passed=4)


def test_pytest_asyncio_in_strict_mode(pytester: pytest.Pytester) -> None:
    marker, fixture = "import pytest_asyncio; pytestmark = pytest.mark.asyncio", "@pytest_asyncio.fixture"
    source = ASYNC.format(marker=marker, fixture=fixture)
    run(pytester, source, "-p", "no:anyio", "--asyncio-mode=strict").assert_outcomes(passed=3)


def test_pytest_asyncio_in_auto_mode(pytester: pytest.Pytester) -> None:
    source = ASYNC.format(marker="", fixture="@pytest.fixture")
    run(pytester, source, "--asyncio-mode=auto").assert_outcomes(passed=3)


@pytest.mark.parametrize("without", [("-p", "no:asyncio"), ()], ids=["alone", "beside-pytest-asyncio"])
def test_anyio(pytester: pytest.Pytester, without: tuple[str, ...]) -> None:
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n")
    source = ASYNC.format(marker="pytestmark = pytest.mark.anyio", fixture="@pytest.fixture")
    run(pytester, source, *without).assert_outcomes(passed=3)


def test_unittest_needs_no_plugin_at_all(pytester: pytest.Pytester) -> None:
    source = """
        import unittest
        from aiohttp import web
        from homeport.mesh.testing import Mesh, virtual_time

        async def orders(request):
            return web.Response(text="an order")

        class Orders(unittest.IsolatedAsyncioTestCase):
            async def test_in_real_time(self):
                mesh = await self.enterAsyncContext(Mesh())
                await mesh.service("orders", orders)
                self.assertEqual((await mesh.call("orders")).status, 200)

        class Virtually(unittest.TestCase):
            @virtual_time(seed=1)
            async def test_in_virtual_time(self):
                async with Mesh() as mesh:
                    await mesh.service("orders", orders, instances=2)
                    mesh.kill("orders#1")
                    self.assertEqual((await mesh.call("orders")).status, 200)
    """
    run(pytester, source, "-p", "no:asyncio").assert_outcomes(passed=2)


def test_the_mesh_in_a_plain_test_fails_with_what_to_say_instead(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test_plain(homeport_mesh): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*`async with Mesh() as mesh`*"])


def test_a_run_that_does_not_ask_loads_nothing_of_homeport(pytester: pytest.Pytester) -> None:
    source = """
        import sys

        def test_nothing_is_loaded():
            loaded = {name for name in sys.modules if name.partition(".")[0] in ("homeport", "aiohttp", "msgspec")}
            assert loaded == {"homeport", "homeport.mesh", "homeport.mesh.pytest_plugin"}
    """
    run(pytester, source).assert_outcomes(passed=1)


def test_the_plugin_s_module_imports_only_pytest_and_touches_no_loop() -> None:
    import ast
    import inspect

    from homeport.mesh import pytest_plugin

    tree = ast.parse(inspect.getsource(pytest_plugin))
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert names == {"__future__", "inspect", "collections.abc", "typing", "pytest"}
    hooks = {name for name in vars(pytest_plugin) if name.startswith("pytest_")}
    assert hooks == {"pytest_configure"}
