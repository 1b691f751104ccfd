#!/bin/sh
# Run once, on the first primary, by Patroni, with the address of its own database.
set -eu
/usr/lib/postgresql/18/bin/psql --no-psqlrc --set=ON_ERROR_STOP=1 --set=password="$POSTGRES_PASSWORD" "$1" <<'SQL'
CREATE ROLE aegis LOGIN CREATEROLE PASSWORD :'password';
GRANT pg_monitor TO aegis;
CREATE DATABASE aegis OWNER aegis;
-- Who takes backups, and archives the WAL.
CREATE ROLE aegis_backup LOGIN REPLICATION PASSWORD :'password';
GRANT pg_read_all_settings, pg_read_all_stats, pg_checkpoint TO aegis_backup;
\connect aegis
GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean), pg_switch_wal(),
    pg_create_restore_point(text) TO aegis_backup;
SQL
