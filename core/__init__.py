"""What AEGIS decides, with no clock, no disk, no network and no database."""
