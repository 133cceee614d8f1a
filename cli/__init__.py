"""Commands of the shell: one click command a file, and their group in `main.py`.

Only this folder uses stdout, exit codes and progress bars. A command parses, calls the library, prints.
"""
