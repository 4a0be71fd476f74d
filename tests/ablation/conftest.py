from ablation_fixtures import fake_uniflow, make_run, study_folders  # noqa: F401
