"""`python -m unziplora_cli` is the same as `unziplora`."""

from unziplora_cli.cli.app import main

if __name__ == "__main__":
    main()
