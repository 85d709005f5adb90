"""Pages of the site that are written by the code: `hooks` is what mkdocs calls."""
