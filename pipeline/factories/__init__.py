"""Factories that users name: their call, and the files that what they make follows from.

`call` imports a factory and calls it with checked arguments. `local_code` finds the source of modules beside an
experiment, `search_path` the folders that such code adds to sys.path, `read_files` the files that arguments name.
"""
