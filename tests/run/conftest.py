from tests.written import bench_document, run_folder  # noqa: F401 - fixtures
