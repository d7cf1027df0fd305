"""`python -m palimpsest`: the command, where its script is not on the path."""

from palimpsest.cli import main

if __name__ == "__main__":
    main()
