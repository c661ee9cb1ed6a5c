"""One compressed forward pass, of no model family: spans, positions, layout, merges, cache."""
