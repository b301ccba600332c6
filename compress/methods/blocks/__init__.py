"""Building blocks of methods: pairs of maps, projections, memory banks, queues of keys."""
