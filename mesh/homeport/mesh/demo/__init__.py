"""A picture-sharing site of five services, run under load while things break: what Homeport is for, on real input.

`apps` are the services, each an ordinary small web application; `site` runs them as processes behind sidecars;
`load` plays the users and `ledger` knows what they must be shown; `script` breaks things; `progress` tells it live.
"""
