#!/bin/sh
# Run once, on the first primary, by Patroni, with the address of its own database.
set -eu
/usr/lib/postgresql/18/bin/psql --no-psqlrc --set=ON_ERROR_STOP=1 --set=password="$AEGIS_PASSWORD" "$1" <<'SQL'
CREATE ROLE aegis LOGIN CREATEROLE PASSWORD :'password';
GRANT pg_monitor TO aegis;
CREATE DATABASE aegis OWNER aegis;
SQL
