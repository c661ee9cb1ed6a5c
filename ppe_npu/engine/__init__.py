"""One compressed forward pass, independent of the model family: spans, positions, layout, merges, cache."""
