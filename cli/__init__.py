"""What can be done from a shell? One click command a file; `main.py` is their group.

Only this folder knows stdout, exit codes and progress bars. A command parses, calls the library, prints.
"""
