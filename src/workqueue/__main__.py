"""`python -m workqueue` is the command `workqueue`."""

from workqueue.cli.main import main

if __name__ == "__main__":
    main()
