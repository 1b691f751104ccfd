"""pgBackRest: for large databases, for buckets, and for encryption; the server itself hands it the WAL."""
