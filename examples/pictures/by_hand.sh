#!/bin/sh
# The picture-sharing site by hand: a registry, its settings, an edge for the users, and one instance of each service.
# Ctrl-C ends all of it. Needs `homeport` on the PATH; README.md says what to try while it runs.
set -eu

PICTURES_DATA=${PICTURES_DATA:-$(mktemp -d)}
export PICTURES_DATA
pids=
# The registry goes last: the others say goodbye to it.
trap 'trap - INT TERM EXIT; kill $pids || :; wait $pids || :; kill $registry; wait' INT TERM EXIT

homeport serve --memory &
registry=$!
until homeport kv put pictures/settings/page_size 20 >/dev/null 2>&1; do :; done
homeport sidecar &
pids="$! $pids"

port=8081
for app in user_profile follower photo_upload feed search; do
    homeport run --name "$(echo $app | tr _ -)" --port $port --check-path /healthz \
        --outbound 127.0.0.1:0 --inbound 127.0.0.1:0 --admin off -- python3 -m homeport.mesh.demo.apps.$app &
    pids="$! $pids"
    port=$((port + 1))
done
echo "PICTURES_DATA=$PICTURES_DATA"
wait
