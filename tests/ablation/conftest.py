from ablation_fixtures import fake_uniflow, make_run, study_folders  # noqa: F401
from cli_fixtures import fit_parser, project, resolve, uniflow  # noqa: F401
