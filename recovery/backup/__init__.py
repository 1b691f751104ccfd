"""Backups: taken by Barman, and counted only once they were restored and verified."""
