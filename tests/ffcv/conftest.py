from tests.data.conftest import images, indexed_beton, stock_beton

__all__ = ["images", "indexed_beton", "stock_beton"]  # fixtures
