"""`python -m inspectd`."""

from inspectd.cli import main

if __name__ == "__main__":
    main()
