"""A campaign of letters, each of which is written down once and tells its campaign so."""
