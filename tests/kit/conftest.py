"""pytester, to run pytest in pytest."""

pytest_plugins = ["pytester"]
