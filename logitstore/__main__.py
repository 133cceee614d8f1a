"""The command line as `python -m logitstore`, for launchers that start a module, such as `torchrun`."""

from .cli.main import main

if __name__ == "__main__":
    main()
