"""A cluster for trying out: three PostgreSQL nodes under Patroni, three etcd, all on this machine."""
