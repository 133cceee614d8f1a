"""The commands, one click command a module, named as on the command line."""
