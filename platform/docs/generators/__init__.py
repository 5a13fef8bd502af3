"""What writes the generated pages of the documentation site, one kind of page a file."""
