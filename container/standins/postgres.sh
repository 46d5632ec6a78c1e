#!/bin/bash
# Makes POSTGRES_USER's database at the first start, then becomes the server.
set -euo pipefail
: "${POSTGRES_PASSWORD:?is not set}" "${POSTGRES_USER:=postgres}"
if [ ! -e "$PGDATA/initialised" ]; then
    find "$PGDATA" -mindepth 1 -delete # what an initdb that was cut short left
    initdb --encoding=UTF8 --locale=C --auth=scram-sha-256 --username="$POSTGRES_USER" \
        --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD")
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo 'CREATE DATABASE' "\"$POSTGRES_USER\"" | postgres --single -j postgres
    touch "$PGDATA/initialised"
fi
exec "$@" -c listen_addresses='*' -c unix_socket_directories=/tmp
