"""The stages of `benchmarks/gpu_day.py`: what only a GPU can show. Each module has `run(tiny)`, which returns figures."""
