from tests.files.written import bench_document, run_folder  # noqa: F401 - fixtures
