"""python -m streamcl is the command line."""

from streamcl.cli import main

if __name__ == "__main__":
    main()
