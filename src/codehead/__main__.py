"""`python -m codehead` is the `codehead` command."""

from codehead.cli.main import main

if __name__ == "__main__":
    main()
