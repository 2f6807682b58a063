"""`python -m deploy` is `deployctl`."""

from deploy.cli.main import main

if __name__ == "__main__":
    main()
