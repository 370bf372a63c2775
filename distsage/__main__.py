"""`python -m distsage`: hand over to the command line."""

from distsage.cli import main

if __name__ == "__main__":
    main()
