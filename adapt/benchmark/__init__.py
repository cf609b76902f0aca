"""What `adapt benchmark` measures, one module a stage."""
