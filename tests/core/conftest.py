from cli_fixtures import fit_parser, resolve  # noqa: F401
