"""Run the program `replay`: `python -m replay`."""

from replay.cli.main import main

if __name__ == "__main__":
    main()
