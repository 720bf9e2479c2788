from tests.report.browsing import browser  # noqa: F401 - a fixture
from tests.written import run_folder  # noqa: F401 - a fixture
