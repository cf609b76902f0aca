"""Numbers as tables, figures, LaTeX and HTML."""
