"""What proves AEGIS: the invariants of a history, read off the database and off a ledger outside of it."""
