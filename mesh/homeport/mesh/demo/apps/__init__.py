"""The five services of the site, one module each; every one starts with `python -m homeport.mesh.demo.apps.NAME`.

They are what a user of Homeport would write: aiohttp, SQLite, and calls to `http://<service>/…` through the proxy that
`HTTP_PROXY` names. Only `settings` knows of the registry, and only to read the site's settings.
"""
