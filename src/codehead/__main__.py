"""`python -m codehead` is the `codehead` command."""

from codehead.main import main

if __name__ == "__main__":
    main()
