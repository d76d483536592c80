"""`python -m ldm`."""

from ldm.commands.cli import main

if __name__ == "__main__":
    main()
