"""What is `python -m logitstore`? The command line, for who starts it by a module's name, as `torchrun` does."""

from .cli.main import main

if __name__ == "__main__":
    main()
