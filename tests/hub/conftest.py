from cli_fixtures import project, uniflow  # noqa: F401
