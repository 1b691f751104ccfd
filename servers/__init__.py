"""A private PostgreSQL and Valkey out of wheels, and the supervisor that runs everything together."""
