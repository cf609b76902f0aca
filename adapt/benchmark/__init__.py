"""What recipes/benchmark.py measures, one module a stage."""
