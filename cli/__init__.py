"""The command ``aegis``: one file a group of commands."""
