from tests.written import run_folder  # noqa: F401 - a fixture
