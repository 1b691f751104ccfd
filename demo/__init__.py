"""``aegis demo``: real work on real files, while its workers are killed and its broker is wiped."""
