from cli_fixtures import fit_parser, project, resolve, uniflow  # noqa: F401
