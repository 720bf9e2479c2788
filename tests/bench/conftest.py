from tests.report.browsing import browser  # noqa: F401 - a fixture
