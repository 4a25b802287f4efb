"""Everything a person runs."""
