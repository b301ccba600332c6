"""What several methods share: which maps they compare, projections, memory banks."""
